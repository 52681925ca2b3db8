"""Statistics of timed samples: percentiles, and a ratio with its interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkvbench.results.record import Ratio

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# With fewer samples beyond it, a percentile is hardly more than the largest sample.
LEAST_BEYOND = 5
LEVEL = 0.95


class Step(NamedTuple):
    """One timed step, and whether the system gave the processor to another process meanwhile.

    ``alone_s`` is the processor time of an interrupted step if it is known, else `seconds`.
    """

    seconds: float
    interrupted: bool
    alone_s: float


# The steps of one arm: one list for each block of rounds.
Blocks = Sequence[Sequence[Step]]


def undisturbed_s(steps: Sequence[Step]) -> list[float]:
    """The times of the steps that were not interrupted; `alone_s` of all steps if most were.

    An interrupted step includes time of other processes. On a busy machine, a step longer than a
    scheduler's time slice is always interrupted, so its processor time is the best estimate.
    """
    times = [step.seconds for step in steps if not step.interrupted]
    return times if 2 * len(times) >= len(steps) else [step.alone_s for step in steps]


def percentiles(samples_s: Sequence[float]) -> dict[str, float]:
    """The median, and each higher percentile with at least five samples beyond it."""
    supported = [
        p
        for p in PERCENTILES
        # In integers: tenths of a percent, so that rounding cannot decide.
        if p == PERCENTILES[0] or len(samples_s) * round(1000 - 10 * p) >= 1000 * LEAST_BEYOND
    ]
    return {f"p{p:g}": float(np.percentile(samples_s, p)) for p in supported}


def ratio(arm: Blocks, first: Blocks, to: str) -> Ratio:
    """The arm's time divided by the first arm's, over the same blocks of rounds.

    Rounds of one block share conditions that last longer than a round: placement in memory, clock
    rate, other processes. So the block is the unit, and its value is the log ratio of the medians.
    The estimate is Hodges-Lehmann's, and the interval Wilcoxon's signed-rank interval, which
    assumes only that the blocks' values are independent and symmetrically distributed.
    """
    logs = [
        math.log(statistics.median(undisturbed_s(ours)) / statistics.median(undisturbed_s(theirs)))
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
    """The number of ordered means that an interval of LEVEL excludes on each side.

    None if even all of them are not enough: with fewer than six blocks.
    """
    # ways[s]: how many of the 2^count choices of signs have s as the sum of positive ranks.
    ways = np.ones(1)
    for rank in range(1, count + 1):
        shifted = np.concatenate([np.zeros(rank), ways])
        ways = np.concatenate([ways, np.zeros(rank)]) + shifted
    tail = np.cumsum(ways) / 2.0**count
    fitting = np.flatnonzero(tail <= (1 - LEVEL) / 2)
    return int(fitting[-1]) if len(fitting) else None
