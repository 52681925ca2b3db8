"""Critical values and p values: Dunnett's law, Boschloo's exact test, Holm, exact bounds."""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import special, stats
from scipy.optimize import brentq

LEVEL = 0.05


@lru_cache(maxsize=4096)
def dunnett(*, arms: int, degrees: float, level: float = LEVEL) -> float:
    """The two-sided critical value for `arms` differences to one baseline, equal numbers of seeds.

    The level-quantile of the largest of `arms` |t| with pairwise correlation ½. Dunnett 1955.
    """
    single = float(stats.t.ppf(1 - level / 2, degrees))
    # Bonferroni's value is an upper bound.
    bound = float(stats.t.ppf(1 - level / (2 * arms), degrees))
    if arms == 1:
        return single
    return brentq(
        lambda value: _inside(value, arms, degrees) - (1 - level), single, bound + 1e-6, xtol=1e-9
    )


def dunnett_p(statistic: float, *, arms: int, degrees: float) -> float:
    """How probable it is that the largest of `arms` |t| reaches this one where no arm differs."""
    return min(1.0, max(0.0, 1.0 - _inside(abs(statistic), arms, degrees)))


@lru_cache(maxsize=4096)
def boschloo(first: int, second: int, *, seeds: int) -> float:
    """Two-sided p of Boschloo's exact test for two counts out of the same number of seeds."""
    table = [[first, second], [seeds - first, seeds - second]]
    return float(stats.boschloo_exact(table).pvalue)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment for testing all of them."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, p[name] * (len(p) - rank)))
        adjusted[name] = largest
    return adjusted


def clopper_pearson(solved: int, seeds: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Exact bounds on a share, from `solved` out of `seeds`."""
    low = stats.beta.ppf(level / 2, solved, seeds - solved + 1) if solved > 0 else 0.0
    high = stats.beta.ppf(1 - level / 2, solved + 1, seeds - solved) if solved < seeds else 1.0
    return float(low), float(high)


def not_lower_p(first: int, second: int, *, seeds: int, margin: float) -> float:
    """One-sided p that the first share of solved seeds is below the second by the margin or more.

    Where each share's exact one-sided bound at half the level leaves less than the margin between
    them, that is shown at the level; p is the smallest such level. Careful: it is never too small.
    """

    def apart(level: float) -> float:
        low = clopper_pearson(first, seeds, level=level)[0]
        return clopper_pearson(second, seeds, level=level)[1] - low

    if apart(1.0) >= margin:
        return 1.0
    small, large = 0.0, 1.0
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if apart(middle) < margin else (middle, large)
    return large


def wilson(share: float, count: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score bounds on a share that `count` independent cases came to."""
    z = float(stats.norm.isf(level / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _inside(value: float, arms: int, degrees: float) -> float:
    """The probability that all of `arms` |t|, pairwise correlated by ½, stay below `value`.

    Given the baseline's mean z and the pooled deviation s the arms are independent, so two sums
    over a grid do it; the trapezoid rule converges exponentially on such integrands.
    """
    z = np.linspace(-8.5, 8.5, 69)
    normal = np.exp(-(z**2) / 2)
    normal /= normal.sum()
    scale, weights = _chi(degrees)
    reach = math.sqrt(2) * value * scale[:, None]
    within = special.ndtr(z + reach) - special.ndtr(z - reach)
    return float(weights @ (within**arms @ normal))


@lru_cache(maxsize=1024)
def _chi(degrees: float) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Values of s = χ/√degrees and their weights, even in log s, out to where the mass is 1e-16."""
    # The first bound always holds, but only the second follows the width at many degrees.
    left = 36 / degrees + 0.5 if degrees < 256 else 12 / math.sqrt(degrees)
    x = np.linspace(-left, 6 / math.sqrt(degrees), 161)
    weights = np.exp(degrees * (x - np.expm1(2 * x) / 2))
    return np.exp(x), weights / weights.sum()
