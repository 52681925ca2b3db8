"""A process that learns with others, and what it was told: `python tests/ranks.py FILE CASE ...`.

Each case is run one after the other in the same processes, since starting them takes seconds. What
the first is told goes into a file of arrays.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from qkvbench import tasks
from qkvbench.backends import torch as backend
from qkvbench.data.batch import IGNORE_INDEX
from qkvbench.experiment import Experiment, Training
from qkvbench.task_ref import TaskRef
from qkvbench.train.loop import batch_indices, learning_rate

STEPS = 20
# A batch of an odd number of items, of parts that are unequal.
TRAINING = Training(steps=STEPS, batch=13, learning_rate=1e-3, warmup=2, scored=20)
# So small that every step is clipped.
PARTS = replace(TRAINING, micro_batches=5, clip=0.3)
CASES = {
    f"{name} {variant}": (variant, training, changed)
    for name, training, changed in (
        ("plain", TRAINING, {}),
        ("parts", PARTS, {"checkpointing": True}),
        ("bf16", TRAINING, {"precision": "bf16"}),
        ("fp16", TRAINING, {"precision": "fp16"}),
    )
    for variant in ("q,k,v", "q,k=v", "q,k=R(q),v")
}


def experiment(case, **changed):
    """The experiment of a case: language that is scored at few places, so parts differ in those."""
    variant, training, more = CASES[case]
    task = tasks.find("recall")
    base = Experiment(task.model, TaskRef("recall"), task.version, training, seed=0, **more)
    return replace(base.vary(variants=[variant], seeds=[0])[0], **changed)


def learned(wanted):
    """The losses and norms of all steps, and what is then said of five items."""
    backend.prepare(1)
    learner, data = backend.Learner(wanted), tasks.find(wanted.task).load()
    batches = batch_indices(len(data.train), wanted.training, wanted.seed)
    if scale := learner.scaler.state_dict():
        # So large that it overflows at first: in the parts of some before those of others.
        learner.scaler.load_state_dict({**scale, "scale": 2.0**40})
    steps = []
    for step in range(1, STEPS + 1):
        batch = data.train.batch(next(batches))
        # The first four items are not scored: a whole part, and it has weight 0.
        batch.targets[:4] = IGNORE_INDEX
        steps.append(learner.gradients(batch))
        learner.update(learning_rate(wanted.training, step))
    said = learner.predict(data.test.batch(np.arange(5)))
    return {"steps": np.array(steps), "loss": said.loss, "predicted": said.predicted}


def begun(wanted):
    """A learner after three steps, and the batch that comes next."""
    backend.prepare(1)
    learner, data = backend.Learner(wanted), tasks.find(wanted.task).load()
    batches = batch_indices(len(data.train), wanted.training, wanted.seed)
    for step in range(1, 4):
        learner.gradients(data.train.batch(next(batches)))
        learner.update(learning_rate(wanted.training, step))
    return learner, data.train.batch(next(batches))


def moved(wanted, folder):
    """The next loss and norm of two that have begun here, and of two that go on from one's state.

    What the two have come to by then is left in the folder, under the name of their sharding.
    """
    learner, batch = begun(wanted)
    # What was whole for a score is in parts again.
    learner.predict(batch)
    learner.state()
    learner.save_state(folder / wanted.sharding)
    here = learner.gradients(batch)
    other = backend.Learner(wanted)
    other.restore(load_file(folder / "one.safetensors"))
    return {"here": here, "from one": other.gradients(batch)}


def main(path, *cases):
    """Do each case by each sharding."""
    told = {}
    _, count = backend.rank_and_world_size()
    for case in cases:
        for sharding in ("ddp", "fsdp"):
            found = learned(experiment(case, devices=count, sharding=sharding))
            told |= {f"{case}/{sharding}/{name}": array for name, array in found.items()}
    for sharding in ("ddp", "fsdp"):
        wanted = experiment("plain q,k=R(q),v", devices=count, sharding=sharding)
        told |= {f"{sharding}/{name}": found for name, found in moved(wanted, path.parent).items()}
    if backend.rank_and_world_size()[0] == 0:
        np.savez(path, **told)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
