"""Critical values and p values: Dunnett's test, Boschloo's exact test, Holm, exact bounds."""

import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from scipy import special, stats
from scipy.optimize import brentq

LEVEL = 0.05

Key = TypeVar("Key", bound=Hashable)


@lru_cache(maxsize=4096)
def dunnett(*, arms: int, degrees: float, level: float = LEVEL) -> float:
    """Two-sided critical value for `arms` differences to one baseline, with equal sample sizes.

    The (1 − level) quantile of the largest of `arms` |t| with pairwise correlation ½. Dunnett 1955.
    """
    single = float(stats.t.ppf(1 - level / 2, degrees))
    # Bonferroni's value is an upper bound.
    bound = float(stats.t.ppf(1 - level / (2 * arms), degrees))
    if arms == 1:
        return single

    def excess(value: float) -> float:
        return _probability_within(value, arms, degrees) - (1 - level)

    return brentq(excess, single, bound + 1e-6, xtol=1e-9)


def dunnett_p(statistic: float, *, arms: int, degrees: float) -> float:
    """The probability that the largest of `arms` |t| reaches `statistic` if no arm differs."""
    return min(1.0, max(0.0, 1.0 - _probability_within(abs(statistic), arms, degrees)))


@lru_cache(maxsize=4096)
def boschloo(first: int, second: int, *, seeds: int) -> float:
    """Two-sided p of Boschloo's exact test for two counts out of the same number of seeds."""
    table = [[first, second], [seeds - first, seeds - second]]
    return float(stats.boschloo_exact(table).pvalue)


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down adjustment of all p values of a family."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, p[name] * (len(p) - rank)))
        adjusted[name] = largest
    return adjusted


def clopper_pearson(solved: int, seeds: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Exact bounds on a proportion, from `solved` out of `seeds`."""
    # Quantiles of beta distributions.
    low = special.betaincinv(solved, seeds - solved + 1, level / 2) if solved > 0 else 0.0
    high = special.betaincinv(solved + 1, seeds - solved, 1 - level / 2) if solved < seeds else 1.0
    return float(low), float(high)


def not_lower_p(first: int, second: int, *, seeds: int, margin: float) -> float:
    """One-sided p that the first proportion of solved seeds is below the second by the margin.

    Non-inferiority is shown at a level if the exact one-sided bounds of both proportions, each at
    half of it, are less than the margin apart; p is the smallest such level. It is conservative.
    """

    def largest_gap(level: float) -> float:
        low = clopper_pearson(first, seeds, level=level)[0]
        return clopper_pearson(second, seeds, level=level)[1] - low

    if largest_gap(1.0) >= margin:
        return 1.0
    small, large = 0.0, 1.0
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if largest_gap(middle) < margin else (middle, large)
    return large


def wilson(share: float, count: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score bounds on a proportion that was observed in `count` independent cases."""
    z = float(stats.norm.isf(level / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _probability_within(value: float, arms: int, degrees: float) -> float:
    """The probability that all of `arms` |t|, with pairwise correlation ½, are below `value`.

    Given the baseline's mean z and the pooled deviation s, the arms are independent, so this is a
    sum over a grid of (s, z); the trapezoid rule converges exponentially on such integrands.
    """
    # Even in z: half of the line, each point but 0 twice.
    z = np.linspace(0, 8.5, 35)
    normal = np.exp(-(z**2) / 2)
    normal[1:] *= 2
    normal /= normal.sum()
    scale, weights = _chi(degrees)
    reach = math.sqrt(2) * value * scale[:, None]
    within = special.ndtr(z + reach) - special.ndtr(z - reach)
    return float(weights @ (within**arms @ normal))


@lru_cache(maxsize=1024)
def _chi(degrees: float) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Quadrature points of s = χ/√degrees and their weights, equidistant in log s.

    The tails that are cut off have a mass of about 1e-16.
    """
    # The first bound always holds, but only the second is tight for many degrees.
    left = 36 / degrees + 0.5 if degrees < 256 else 12 / math.sqrt(degrees)
    x = np.linspace(-left, 6 / math.sqrt(degrees), 161)
    weights = np.exp(degrees * (x - np.expm1(2 * x) / 2))
    weights /= weights.sum()
    # Most points lie where nothing is.
    counted = weights > 1e-17
    return np.exp(x[counted]), weights[counted]
