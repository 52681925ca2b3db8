"""Multi-query associative recall as published (arXiv:2312.04927): pairs, then keys long after.

``k3 v7 k1 v2 | k9 k1 k5 k3 k8 …``: each key is asked for once, at a distance from the pairs that is
drawn from a power law. The published code fills the positions in between with random tokens; some
are keys that were shown, which overwrites their pair. Here they are keys that were not shown: they
look like a question, and no pair is overwritten.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.experiment import Training
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, accuracy
from qkvbench.tasks.kinds.drawn import drawn_task, split_distinct

KEYS = 32
VALUES = 32
PAIRS = (2, 4, 8)
LENGTH = 32
# The exponent of the published power law is this minus one.
POWER = 0.01
SEQUENCES_EACH = 16_000


def load() -> Data:
    """Distinct sequences with 2, 4 and 8 pairs, in turn."""
    drawn = [sequences(pairs, SEQUENCES_EACH) for pairs in PAIRS]
    inputs, targets = (np.stack(parts, axis=1) for parts in zip(*drawn, strict=True))
    return split_distinct(inputs.reshape(-1, LENGTH), targets.reshape(-1, LENGTH))


def sequences(
    pairs: int, count: int
) -> tuple[Int[np.ndarray, "count length"], Int[np.ndarray, "count length"]]:
    """So many sequences with so many pairs, and the target of each position."""
    rng = generator(0, "task", f"mqar {pairs}")
    order = rng.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)
    keys, others = order[:, :pairs], order[:, pairs:]
    values = KEYS + rng.permuted(np.tile(np.arange(VALUES), (count, 1)), axis=1)[:, :pairs]

    shown = 2 * pairs
    free = LENGTH - shown
    items = np.empty((count, LENGTH), np.int64)
    items[:, 0:shown:2], items[:, 1:shown:2] = keys, values
    between = rng.integers(others.shape[1], size=(count, free))
    items[:, shown:] = np.take_along_axis(others, between, axis=1)
    # A question and a position after it, as published.
    positions = shown + 2 * draw_by_power_law(rng, free // 2, pairs, count)
    np.put_along_axis(items, positions, keys, axis=1)
    targets = np.full_like(items, IGNORE_INDEX)
    np.put_along_axis(targets, positions, values, axis=1)
    return items, targets


def draw_by_power_law(
    rng: np.random.Generator, positions: int, wanted: int, count: int
) -> Int[np.ndarray, "count wanted"]:
    """Distinct positions, drawn one after the other with a chance that falls with distance."""
    chances = np.arange(1, positions + 1) ** (POWER - 1)
    # The earliest of exponential waiting times, in order, are a draw without replacement.
    waits = rng.exponential(1 / chances, size=(count, positions))
    return np.argsort(waits, axis=1)[:, :wanted]


def score(outcome: Predictions) -> dict[str, float]:
    """Accuracy over all questions, and for each number of pairs."""
    asked = (outcome.targets != IGNORE_INDEX).sum(axis=1)
    of_each = {
        f"accuracy_{pairs}": accuracy(_only(outcome, asked == pairs))["accuracy"]
        for pairs in PAIRS
        if (asked == pairs).any()
    }
    return accuracy(outcome) | of_each


def _only(outcome: Predictions, chosen: Bool[np.ndarray, " items"]) -> Predictions:
    return Predictions(
        outcome.loss[chosen],
        outcome.predicted[chosen],
        outcome.targets[chosen],
        outcome.ranks[chosen],
    )


TASK = replace(
    drawn_task(
        "mqar",
        "Recall values by their keys, asked far apart: 2, 4 or 8 pairs in 32 positions.",
        vocabulary=KEYS + VALUES,
        answers=VALUES,
        length=LENGTH,
        training=Training(steps=1000, batch=32, learning_rate=2e-3, warmup=50, evaluations=20),
        load=load,
    ),
    score=score,
)
