"""Runs in processes of their own, ended at a chosen moment, and what they leave."""

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import safetensors.numpy

from qkvbench import tasks
from qkvbench.experiment import Experiment, Training
from qkvbench.train import checkpoint
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import run

# Everything that draws or adds up in parts is switched on.
TRAINING = Training(
    steps=30,
    batch=16,
    learning_rate=1e-3,
    warmup=2,
    evaluations=3,
    scored=40,
    dropout=0.2,
    micro_batches=2,
)

SERVER = multiprocessing.get_context("forkserver")
# The optimizer imports torch's compiler, which takes seconds.
SERVER.set_forkserver_preload(["qkvbench.train.run", "qkvbench.backends.torch", "torch._dynamo"])


def experiment(variant="q,k=v", training=TRAINING, **changed):
    found = tasks.find("digits")
    base = Experiment(found.model, "digits", found.version, training, seed=0)
    return replace(base.vary(variants=[variant], seeds=[changed.pop("seed", 0)])[0], **changed)


def often(root):
    """A checkpoint after every step."""
    return Checkpoints(root, every_s=0.0, share=math.inf)


def told(record):
    """What must repeat: everything but times, memory and load."""
    return record.model_dump(mode="json", exclude={"observed", "machine", "started"})


def begun(wanted, folder, stage=None, **chosen):
    """A process that trains `wanted` with a checkpoint after every step; it is killed at a stage."""
    process = SERVER.Process(target=learn, args=(wanted, folder, stage), kwargs=chosen)
    process.start()
    return process


def learn(wanted, folder, stage=None, every_s=0.0):
    """In the process: train, note every loss at once, and at the end the record and a hash."""
    if stage is not None:
        die_at(*stage)
    with (folder / "losses").open("a") as losses:

        def report(step, loss):
            losses.write(f"{step} {float(loss).hex()}\n")
            losses.flush()

        def at_end(_experiment, record, learner):
            whole = sha256()
            for name, weight in sorted(learner.weights().items()):
                whole.update(name.encode() + weight.detach().numpy().tobytes())
            end = {"record": told(record), "resumed": record.observed.resumed}
            (folder / "end.json").write_text(json.dumps({**end, "weights": whole.hexdigest()}))

        place = replace(often(folder / "checkpoints"), every_s=every_s)
        record = run(wanted, report, at_end, place)
    (folder / "record.json").write_text(json.dumps(record.model_dump(mode="json")))


def die_at(step, moment):
    """Have this process killed while it saves `step`, at that moment of the save."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        return lambda place, *rest: die() if _saves(place, step) else function(place, *rest)

    match moment:
        case "half of the numbers":
            save = safetensors.numpy.save_file

            def half(state, path):
                save(state, path)
                if _saves(path.parent, step):
                    os.truncate(path, path.stat().st_size // 2)
                    die()

            safetensors.numpy.save_file = half
        case "written, not flushed":
            checkpoint._flush = before(checkpoint._flush)
        case "flushed, not renamed":
            checkpoint._put = before(checkpoint._put)
        case "renamed, folder not flushed":
            put = checkpoint._put

            def put_and_die(beside, place):
                put(beside, place)
                if _saves(place, step):
                    die()

            checkpoint._put = put_and_die


def _saves(path, step):
    return f"step-{step:09d}" in str(path)


def steps_noted(folder):
    """How many losses a process has noted by now."""
    path = folder / "losses"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_after(process, folder, steps, more_s):
    """Kill the process some moment after it has noted so many more losses."""
    until = steps_noted(folder) + steps
    while steps_noted(folder) < until:
        assert process.is_alive(), "It ended before it could be killed."
        time.sleep(0.001)
    time.sleep(more_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def end(folder):
    """What a run came to: its record, weights, where it was resumed, and the loss of each step.

    A step that was taken twice must have had the same loss both times. The last line may be torn.
    """
    losses = {}
    for line in (folder / "losses").read_text().splitlines():
        step, loss = line.split()
        assert losses.setdefault(int(step), loss) == loss
    ended = json.loads((folder / "end.json").read_text())
    return {**ended, "losses": losses}


def left_over(folder):
    """What a save that was not finished has left."""
    return sorted(path.name for path in Path(folder).rglob("*.tmp"))
