"""How many seeds a question takes, from the noise of a pilot study."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL
from qkvbench.results.layout import detectable, provable

POWERS = (0.8, 0.9)
# A pilot's deviation is itself uncertain: this is how sure the careful plan is to be enough.
SURE = 0.8
MOST_SEEDS = 200
MOST_COUNTED = 80


@dataclass(frozen=True)
class Need:
    """Seeds that a task takes, at one power and for one deviation; None: more than can be planned.

    ``detect`` is for a true difference of the margin to be told from none, ``match`` for an equal
    arm to be shown within the margin; for each arm when `arms` are tested together.
    """

    arms: int
    power: float
    deviation: float
    detect: int | None
    match: int | None


def needs(*, margin: float, deviation: float, arms: int, power: float) -> Need:
    """What `arms` arms, the baseline among them, take at this noise."""
    wanted = margin / deviation if deviation > 0 else math.inf
    return Need(
        arms=arms,
        power=power,
        deviation=deviation,
        detect=_fewest(lambda seeds: detectable(arms=arms, seeds=seeds, power=power) <= wanted),
        match=_fewest(lambda seeds: provable(arms=arms, seeds=seeds, power=power) <= wanted),
    )


def careful(deviation: float, *, degrees: int) -> float:
    """A deviation that the true one is below, as surely as `SURE`, from a pilot's."""
    return deviation * math.sqrt(degrees / float(stats.chi2.ppf(1 - SURE, degrees)))


def counted_needs(*, share: float, margin: float, arms: int, power: float) -> int | None:
    """Seeds at which a share of solved seeds lower by `margin` than `share` is told from it.

    By Boschloo's test at the level of Holm's first step; None: more than can be planned.
    """
    lower = max(0.0, share - margin)
    for seeds in range(2, MOST_COUNTED + 1):
        table = boschloo_table(seeds)
        counts = np.arange(seeds + 1)
        of_arm, of_base = (stats.binom.pmf(counts, seeds, each) for each in (lower, share))
        told = (table < LEVEL / (arms - 1)) & (counts[:, None] < counts[None])
        if float(of_arm @ told @ of_base) >= power:
            return seeds
    return None


@lru_cache(maxsize=128)
def boschloo_table(seeds: int) -> Float[np.ndarray, "first second"]:
    """Boschloo's two-sided p for every two counts out of `seeds`, at once.

    The nuisance share is searched on a grid, so p can be too small by some thousandths of itself.
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
    # Tables with one Fisher p belong together: each counts the last of them.
    ranked = fisher.ravel()[order]
    last = np.searchsorted(ranked, ranked * (1 + 1e-9), side="right") - 1
    one_sided = np.empty(fisher.size)
    one_sided[order] = mass[last]
    lower = one_sided.reshape(fisher.shape)
    return np.minimum(1.0, 2 * np.minimum(lower, lower.T))


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds that is enough, if more never is worse."""
    low, high = 1, 2
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
