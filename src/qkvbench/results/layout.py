"""Differences to a baseline in the two-way layout score = arm + seed + noise, many studies at once.

The standard error of a difference is estimated in three ways and the widest interval is used,
because none alone keeps its level with few seeds *and* unequal variances of the arms (simulated in
benchmarks/error_rates.py):

- *pooled*: the noise of all arms together; Dunnett's critical value;
- *apart*: the baseline against the mean of the others has its own variance, the others pool theirs;
  Dunnett's value at Satterthwaite's degrees of freedom. It guards against a baseline that varies
  more than the arms, because the baseline's error is in every difference;
- *own*: the paired differences of one arm alone; Student's t. It guards against an arm that varies
  more than the others.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, dunnett, dunnett_p

# The widest of three is conservative, so an arm's own interval needs no simultaneous level: with
# this one, the three together kept 5% in every profile of variances that was simulated.
OWN_LEVEL = 0.04
# Degrees of freedom are rounded down on a grid of this ratio, so that critical values are cached.
DEGREES_STEP = 0.02

PerStudy = Float[np.ndarray, " studies"]
PerArm = Float[np.ndarray, "studies others"]


@dataclass(frozen=True)
class Differences:
    """Each arm's mean minus the baseline's, with three standard errors.

    ``apart_degrees`` are the degrees of freedom of ``apart``; ``pooled`` has (arms − 1)(seeds − 1)
    and ``own`` has seeds − 1.
    """

    value: PerArm
    pooled: PerStudy
    apart: PerStudy
    apart_degrees: PerStudy
    own: PerArm
    seeds: int

    @property
    def others(self) -> int:
        """The number of arms that are compared with the baseline."""
        return self.value.shape[1]

    @property
    def pooled_degrees(self) -> int:
        """Degrees of freedom of the pooled noise."""
        return self.others * (self.seeds - 1)

    @cached_property
    def widths(self) -> tuple[PerArm, PerArm, PerArm]:
        """Half the width of the simultaneous 95% intervals, for each of the three errors."""
        pooled = dunnett(arms=self.others, degrees=self.pooled_degrees) * self.pooled
        level = own_level(self.others)
        own = float(stats.t.isf(level / 2, self.seeds - 1)) * self.own
        apart = _dunnett_values(self.others, self.apart_degrees) * self.apart
        ones = np.ones((1, self.others))
        return pooled[:, None] * ones, apart[:, None] * ones, own

    @cached_property
    def width(self) -> PerArm:
        """Half the width of the simultaneous 95% interval: the widest of the three."""
        return np.maximum.reduce(self.widths)

    def p(self, study: int = 0) -> list[float]:
        """The p value of each arm's difference, adjusted for all arms.

        The largest p of the three tests, so it is below 0.05 exactly if the interval excludes zero.
        """
        arms = self.others
        degrees = float(_rounded_degrees(arms, self.apart_degrees)[study])
        p: list[float] = []
        for value, own in zip(self.value[study], self.own[study], strict=True):
            pooled_t = _t_statistic(value, self.pooled[study])
            apart_t = _t_statistic(value, self.apart[study])
            own_p = 2 * float(stats.t.sf(_t_statistic(value, own), self.seeds - 1))
            p.append(
                max(
                    dunnett_p(pooled_t, arms=arms, degrees=self.pooled_degrees),
                    dunnett_p(apart_t, arms=arms, degrees=degrees),
                    min(1.0, LEVEL / own_level(arms) * own_p),
                )
            )
        return p

    def above_p(self, bound: float) -> PerArm:
        """One-sided p of each arm alone that its difference is not above `bound`: the largest."""
        distance = self.value - bound
        tests = (
            stats.t.sf(distance / self.pooled[:, None], self.pooled_degrees),
            stats.t.sf(distance / self.apart[:, None], self.apart_degrees[:, None]),
            # `own` is zero if the difference is the same on every seed.
            stats.t.sf(distance / np.maximum(self.own, 1e-300), self.seeds - 1),
        )
        return np.maximum.reduce([np.asarray(each) for each in tests])

    def below_p(self, bound: float) -> PerArm:
        """One-sided p of each arm alone that its difference is not below `bound`: the largest."""
        return self.negated.above_p(-bound)

    @cached_property
    def negated(self) -> "Differences":
        """The same with the opposite sign of every difference."""
        errors = (self.pooled, self.apart, self.apart_degrees, self.own)
        return Differences(-self.value, *errors, self.seeds)

    def equivalence_width(self, level: float) -> PerArm:
        """How far |difference| must be below the margin for equivalence at this level."""
        pooled = float(stats.t.isf(level, self.pooled_degrees)) * self.pooled
        apart = np.asarray(stats.t.isf(level, self.apart_degrees)) * self.apart
        own = float(stats.t.isf(level, self.seeds - 1)) * self.own
        return np.maximum(np.maximum(pooled, apart)[:, None], own)


def differences(tables: Float[np.ndarray, "studies arms seeds"]) -> Differences:
    """The differences to the first arm; at least two arms and two seeds."""
    _, arms, seeds = tables.shape
    base, others = tables[:, 0], tables[:, 1:]
    pooled = (residuals(tables) ** 2).sum((1, 2)) / ((arms - 1) * (seeds - 1))
    against = (base - others.mean(axis=1)).var(axis=1, ddof=1)
    rest = np.zeros_like(pooled)
    if arms > 2:
        rest = (residuals(others) ** 2).sum((1, 2)) / ((arms - 2) * (seeds - 1))
    # Var(x₀ − x̄) = σ₀² + σ²/m for m others, so σ₀² + σ² takes another σ²(1 − 1/m).
    rest = rest * (1 - 1 / (arms - 1))
    apart = against + rest
    spread = against**2 / (seeds - 1) + rest**2 / max(1, (arms - 2) * (seeds - 1))
    degrees = np.full_like(apart, seeds - 1)
    np.divide(apart**2, spread, out=degrees, where=spread > 0)
    own = (others - base[:, None]).var(axis=2, ddof=1)
    return Differences(
        value=others.mean(axis=2) - base.mean(axis=1)[:, None],
        pooled=np.sqrt(2 * pooled / seeds),
        apart=np.sqrt(apart / seeds),
        apart_degrees=degrees,
        own=np.sqrt(own / seeds),
        seeds=seeds,
    )


def residuals(
    tables: Float[np.ndarray, "*studies arms seeds"],
) -> Float[np.ndarray, "*studies arms seeds"]:
    """The residuals of score = arm + seed + noise."""
    return (
        tables
        - tables.mean(axis=-1, keepdims=True)
        - tables.mean(axis=-2, keepdims=True)
        + tables.mean(axis=(-2, -1), keepdims=True)
    )


def own_level(others: int) -> float:
    """The level of an arm's own interval; a single arm needs no adjustment."""
    return LEVEL if others == 1 else OWN_LEVEL


@lru_cache(maxsize=512)
def detectable_difference(*, arms: int, seeds: int, power: float) -> float:
    """The true difference, in deviations of the noise, that is detected with this power.

    For equal variances; from simulated studies with a fixed seed.
    """
    null = _null_studies(arms, seeds)
    return float(np.quantile(null.width[:, 0] - null.value[:, 0], power))


@lru_cache(maxsize=512)
def provable_margin(*, arms: int, seeds: int, power: float) -> float:
    """The margin, in deviations of the noise, within which an equal arm is shown to match.

    With this power for each arm, tested together with all others (the first step of Holm).
    """
    null = _null_studies(arms, seeds)
    width = null.equivalence_width(LEVEL / (arms - 1))[:, 0]
    return float(np.quantile(np.abs(null.value[:, 0]) + width, power))


@lru_cache(maxsize=32)
def _null_studies(arms: int, seeds: int) -> Differences:
    """Simulated studies without differences and with unit noise; fewer if each is large."""
    studies = max(2000, min(10_000, 1_500_000 // (arms * seeds)))
    noise = np.random.default_rng([arms, seeds]).normal(size=(studies, arms, seeds))
    return differences(noise)


def _dunnett_values(others: int, degrees: PerStudy) -> PerStudy:
    rounded = _rounded_degrees(others, degrees)
    values = {each: dunnett(arms=others, degrees=float(each)) for each in np.unique(rounded)}
    return np.array([values[each] for each in rounded])


def _rounded_degrees(others: int, degrees: PerStudy) -> PerStudy:
    if others == 1:
        # All studies have seeds − 1 degrees then, so no rounding is needed.
        return degrees
    steps = np.floor(np.log(degrees) / math.log1p(DEGREES_STEP) + 1e-9)
    return np.round((1 + DEGREES_STEP) ** steps, 6)


def _t_statistic(value: float, error: float) -> float:
    return abs(value) / error if error > 0 else math.inf
