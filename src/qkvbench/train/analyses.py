"""Snapshots: measures of every attention layer during training, a few times, on one batch."""

import math

import numpy as np
from threadpoolctl import threadpool_limits

from qkvbench.analysis import measure_layer
from qkvbench.backends import GatedLearner, Learner
from qkvbench.data.batch import Batch
from qkvbench.experiment import Training
from qkvbench.results.record import Snapshot
from qkvbench.tasks import Data, Task

# Snapshots after the one before the first step, and positions of the batch. Small enough that a run
# of the small tasks spends about a hundredth of its time here.
SNAPSHOTS = 4
POSITIONS = 256
# Significant digits of a measure in a record; more would be rounding noise.
DIGITS = 6


def snapshot_steps(training: Training) -> frozenset[int]:
    """The steps after which snapshots are taken: evenly spaced, and the last."""
    return frozenset(round(training.steps * (n + 1) / SNAPSHOTS) for n in range(SNAPSHOTS))


def batch_of_snapshots(task: Task, data: Data) -> Batch:
    """The first items of the validation split: the same for every arm, seed and step.

    Long items are truncated, because a snapshot needs the whole matrix of attention weights.
    """
    items = max(1, POSITIONS // task.tokens)
    whole = data.validation.batch(np.arange(min(items, len(data.validation))))
    lengths = None if whole.lengths is None else np.minimum(whole.lengths, POSITIONS)
    return Batch(whole.inputs[:, :POSITIONS], whole.targets[:, :POSITIONS], lengths, whole.second)


def snapshot(step: int, learner: Learner, batch: Batch) -> Snapshot:
    """Every measure of every layer after `step`; None if it does not apply or is not finite.

    Of a learner with gates, the probabilities of the options.
    """
    gates = learner.gate_measures() if isinstance(learner, GatedLearner) else {}
    if gates:
        numbers = range(len(next(iter(gates.values()))))
        return Snapshot(
            step=step,
            layers=[f"blocks.{number}.attention" for number in numbers],
            measures={name: [*row] for name, row in gates.items()},
        )
    # More threads are slower on small matrices, and give other bits on another machine.
    with threadpool_limits(limits=1, user_api="blas"):
        layers = learner.inspect(batch)
        found = [measure_layer(layer) for layer in layers]
    names = found[0] if found else {}
    return Snapshot(
        step=step,
        layers=[layer.name for layer in layers],
        measures={name: [_rounded(each[name]) for each in found] for name in names},
    )


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
