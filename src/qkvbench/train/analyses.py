"""Looks into the layers of a model that is learning: a few, on one batch, as numbers only."""

import math

import numpy as np
from threadpoolctl import threadpool_limits

from qkvbench.analysis import measure_layer
from qkvbench.backends import Learner
from qkvbench.data.batch import Batch
from qkvbench.experiment import Training
from qkvbench.results.record import Snapshot
from qkvbench.tasks import Data, Task

# Besides the one before the first step, and positions that are looked at. So few that a run of
# the small tasks spends about a hundredth of its time here.
SNAPSHOTS = 4
POSITIONS = 256
# What a record says of a measure; more would be noise of the sums.
DIGITS = 6


def analysed_steps(training: Training) -> frozenset[int]:
    """The steps after which the layers are looked into: evenly spread, and the last."""
    return frozenset(round(training.steps * (n + 1) / SNAPSHOTS) for n in range(SNAPSHOTS))


def analysed_batch(task: Task, data: Data) -> Batch:
    """The first items of the validation split: the same for every arm, seed and step.

    Of a long item its beginning: what is looked at holds all scores, so it must not be long.
    """
    items = max(1, POSITIONS // task.tokens)
    whole = data.validation.batch(np.arange(min(items, len(data.validation))))
    lengths = None if whole.lengths is None else np.minimum(whole.lengths, POSITIONS)
    return Batch(whole.inputs[:, :POSITIONS], whole.targets[:, :POSITIONS], lengths, whole.second)


def snapshot(step: int, learner: Learner, batch: Batch) -> Snapshot:
    """Every measure of every layer after `step`; None where one does not apply."""
    # The matrices are small: more threads take longer, and give other bits on another machine.
    with threadpool_limits(limits=1, user_api="blas"):
        layers = learner.inspect(batch)
        found = [measure_layer(layer) for layer in layers]
    names = found[0] if found else {}
    return Snapshot(
        step=step,
        layers=[layer.name for layer in layers],
        measures={name: [_told(each[name]) for each in found] for name in names},
    )


def _told(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
