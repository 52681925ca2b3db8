"""What timed samples can carry: percentiles, and a ratio with its interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkvbench.results.record import Ratio

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# A percentile with fewer samples beyond it is hardly more than the largest sample.
LEAST_BEYOND = 5
LEVEL = 0.95


class Step(NamedTuple):
    """One timed step, and whether the system took the processor away from it meanwhile.

    ``alone_s`` is what it would have taken otherwise: the time for which it had the processor,
    where that can be told, or else the same.
    """

    seconds: float
    interrupted: bool
    alone_s: float


# The steps of one arm: one list for each block of rounds.
Blocks = Sequence[Sequence[Step]]


def kept(steps: Sequence[Step]) -> list[float]:
    """The times of the steps that were not interrupted; where most were, what all took alone.

    An interrupted step has its neighbours' time in it. A step longer than a turn at the processor
    is always interrupted on a busy machine, and there is nothing better.
    """
    whole = [step.seconds for step in steps if not step.interrupted]
    return whole if 2 * len(whole) >= len(steps) else [step.alone_s for step in steps]


def percentiles(samples_s: Sequence[float]) -> dict[str, float]:
    """The median, and each higher percentile that at least five samples lie beyond."""
    carried = [
        p
        for p in PERCENTILES
        # In tenths of a percent, so that no rounding decides.
        if p == PERCENTILES[0] or len(samples_s) * round(1000 - 10 * p) >= 1000 * LEAST_BEYOND
    ]
    return {f"p{p:g}": float(np.percentile(samples_s, p)) for p in carried}


def ratio(arm: Blocks, first: Blocks, to: str) -> Ratio:
    """How many times as long the arm takes as the first, over the same blocks of rounds.

    Rounds of one block share what lasts longer than a round: where things lie in memory, the
    clock, the neighbours. So the block is the unit: its value is the log ratio of the medians. The
    estimate is Hodges' and Lehmann's and the interval Wilcoxon's signed-rank, which asks of the
    blocks' values only that they are independent and lie symmetrically.
    """
    logs = [
        math.log(statistics.median(kept(ours)) / statistics.median(kept(theirs)))
        for ours, theirs in zip(arm, first, strict=True)
    ]
    count = len(logs)
    means = sorted((logs[i] + logs[j]) / 2 for i in range(count) for j in range(i, count))
    cut = _cut(count)
    return Ratio(
        to=to,
        value=math.exp(statistics.median(means)),
        low=None if cut is None else math.exp(means[cut]),
        high=None if cut is None else math.exp(means[-1 - cut]),
        level=LEVEL,
        blocks=count,
    )


def _cut(count: int) -> int | None:
    """How many of the ordered means an interval of LEVEL leaves out on each side.

    None where even all of them are not enough: with fewer than six blocks.
    """
    # How many of the 2^count choices of signs give each sum of positive ranks.
    ways = np.ones(1)
    for rank in range(1, count + 1):
        shifted = np.concatenate([np.zeros(rank), ways])
        ways = np.concatenate([ways, np.zeros(rank)]) + shifted
    tail = np.cumsum(ways) / 2.0**count
    fitting = np.flatnonzero(tail <= (1 - LEVEL) / 2)
    return int(fitting[-1]) if len(fitting) else None
