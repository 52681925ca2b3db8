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

import numpy as np
import safetensors.numpy

from qkvbench import tasks
from qkvbench.backends import STATE_FILE, SingleProcess
from qkvbench.experiment import Experiment, Training, to_json
from qkvbench.measure.machine import machine
from qkvbench.task_ref import TaskRef
from qkvbench.train import checkpoint
from qkvbench.train.checkpoint import Checkpoints, Progress
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
    base = Experiment(found.model, TaskRef("digits"), found.version, training, seed=0)
    return replace(base.vary(variants=[variant], seeds=[changed.pop("seed", 0)])[0], **changed)


def every_step(root):
    """A checkpoint after every step."""
    return Checkpoints(root, every_s=0.0, share=math.inf)


def progress(wanted, step):
    return Progress(
        experiment=to_json(wanted),
        step=step,
        curve=[],
        snapshots=[],
        solved_step=None,
        step_s=[0.1] * step,
        started="2026-11-25T00:00:00+00:00",
        train_s=1.0,
        compile_s=None,
        resumed=[],
        machine=machine("cpu"),
    )


class Numbers:
    """The state of a checkpoint, without a learner."""

    world = SingleProcess()

    def __init__(self, arrays):
        self.arrays = arrays

    def state(self):
        return self.arrays

    def save_state(self, folder):
        safetensors.numpy.save_file(self.arrays, folder / STATE_FILE)


def save_steps(root, wanted, steps):
    """A place with a checkpoint of each step, whose numbers tell the step."""
    place = every_step(root)
    for step in steps:
        numbers = Numbers({"weights.a": np.full((3, 5), step, np.float32)})
        place.save(wanted, progress(wanted, step), numbers)
    return place


def repeatable(record):
    """What must repeat: everything but times, memory and load."""
    return record.model_dump(mode="json", exclude={"observed", "machine", "started"})


def start(wanted, folder, stage=None, **chosen):
    """A process that trains `wanted`, with a checkpoint after every step; killed at a stage."""
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
            end = {"record": repeatable(record), "resumed": record.observed.resumed}
            (folder / "end.json").write_text(json.dumps({**end, "weights": whole.hexdigest()}))

        place = replace(every_step(folder / "checkpoints"), every_s=every_s)
        record = run(wanted, report, at_end, place)
    (folder / "record.json").write_text(json.dumps(record.model_dump(mode="json")))


def die_at(step, moment):
    """Have this process killed while it saves `step`, at that moment of the save."""
    name, wrapped = MOMENTS[moment]
    module = safetensors.numpy if name == "save_file" else checkpoint
    function = getattr(module, name)

    def dying(*arguments):
        if any(f"step-{step:09d}" in str(each) for each in arguments):
            wrapped(function, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        function(*arguments)

    setattr(module, name, dying)


def _half(save, state, path):
    save(state, path)
    os.truncate(path, path.stat().st_size // 2)


def _nothing(*_):
    """Die before anything is done."""


def _all(function, *arguments):
    function(*arguments)


# Which function dies, and what it has done by then.
MOMENTS = {
    "half of the numbers": ("save_file", _half),
    "written, not flushed": ("_flush", _nothing),
    "flushed, not renamed": ("_put", _nothing),
    "renamed, folder not flushed": ("_put", _all),
}


def steps_noted(folder):
    """How many losses a process has noted by now."""
    path = folder / "losses"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process, folder, steps, more_s):
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
