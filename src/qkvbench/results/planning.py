"""The number of seeds that a question needs, from the noise of a pilot study."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL
from qkvbench.results.layout import detectable_difference, provable_margin

POWERS = (0.8, 0.9)
# A pilot's deviation is itself uncertain: the conservative plan is enough with this probability.
CONFIDENCE = 0.8
MAX_SEEDS = 200
MAX_COUNTED_SEEDS = 80


@dataclass(frozen=True)
class SeedsNeeded:
    """Seeds for one task, power and deviation; None if more than `MAX_SEEDS`.

    ``detect``: a true difference of the margin is significant. ``match``: an equal arm is shown to
    be within the margin. Both for each arm if `arms` are tested together.
    """

    arms: int
    power: float
    deviation: float
    detect: int | None
    match: int | None


def seeds_needed(*, margin: float, deviation: float, arms: int, power: float) -> SeedsNeeded:
    """The seeds that `arms` arms, including the baseline, need at this noise."""
    target = margin / deviation if deviation > 0 else math.inf
    return SeedsNeeded(
        arms=arms,
        power=power,
        deviation=deviation,
        detect=_smallest(
            lambda seeds: detectable_difference(arms=arms, seeds=seeds, power=power) <= target
        ),
        match=_smallest(
            lambda seeds: provable_margin(arms=arms, seeds=seeds, power=power) <= target
        ),
    )


def upper_deviation(deviation: float, *, degrees: int) -> float:
    """The upper confidence bound, at `CONFIDENCE`, of the true deviation, from a pilot's."""
    return deviation * math.sqrt(degrees / float(stats.chi2.ppf(1 - CONFIDENCE, degrees)))


def counted_seeds_needed(*, share: float, margin: float, arms: int, power: float) -> int | None:
    """Seeds at which a proportion of solved seeds that is `margin` below `share` is significant.

    By Boschloo's test at the level of Holm's first step; None if more than `MAX_COUNTED_SEEDS`.
    """
    lower = max(0.0, share - margin)
    for seeds in range(2, MAX_COUNTED_SEEDS + 1):
        table = boschloo_table(seeds)
        counts = np.arange(seeds + 1)
        of_arm, of_base = (stats.binom.pmf(counts, seeds, each) for each in (lower, share))
        significant = (table < LEVEL / (arms - 1)) & (counts[:, None] < counts[None])
        if float(of_arm @ significant @ of_base) >= power:
            return seeds
    return None


@lru_cache(maxsize=128)
def boschloo_table(seeds: int) -> Float[np.ndarray, "first second"]:
    """Boschloo's two-sided p for every pair of counts out of `seeds`.

    The nuisance parameter is maximized on a grid, so p may be too small by a few thousandths of it.
    """
    counts = np.arange(seeds + 1)
    total = counts[:, None] + counts[None]
    fisher = np.asarray(stats.hypergeom.cdf(counts[:, None], 2 * seeds, total, seeds))
    shares = np.linspace(0.002, 0.998, 499)
    single: Float[np.ndarray, "counts shares"] = np.asarray(
        stats.binom.pmf(counts[:, None], seeds, shares)
    )
    order = np.argsort(fisher, axis=None, kind="stable")
    first, second = np.unravel_index(order, fisher.shape)
    mass = np.cumsum(single[first] * single[second], axis=0).max(axis=1)
    # Tables with the same Fisher p share the p value of the last of them.
    ranked = fisher.ravel()[order]
    last = np.searchsorted(ranked, ranked * (1 + 1e-9), side="right") - 1
    one_sided = np.empty(fisher.size)
    one_sided[order] = mass[last]
    lower = one_sided.reshape(fisher.shape)
    return np.minimum(1.0, 2 * np.minimum(lower, lower.T))


def _smallest(sufficient: Callable[[int], bool]) -> int | None:
    """The smallest sufficient number of seeds, for a monotone condition; by bisection."""
    low, high = 1, 2
    while not sufficient(high):
        if high >= MAX_SEEDS:
            return None
        low, high = high, min(2 * high, MAX_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sufficient(middle) else (middle, high)
    return high
