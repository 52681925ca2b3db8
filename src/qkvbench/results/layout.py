"""Differences to a baseline in the two-way layout score = arm + seed + noise, many studies at once.

Three estimates of a difference's error are made, and the widest interval is used, because none
alone keeps its level for few seeds *and* arms that vary differently (`simulation` shows it):

- *pooled*: the noise of all arms together; Dunnett's critical value;
- *baseline apart*: the baseline against the mean of the others has its own variance, the others
  pool theirs; Dunnett's value at Satterthwaite's degrees of freedom. It guards against a baseline
  that varies more than the arms, whose error is in every difference;
- *own*: the paired differences of the one arm alone; Student's t. It guards against an arm that
  varies more than the others.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, dunnett, dunnett_p

# Beside the two simultaneous intervals an arm's own need not be simultaneous as well: at this
# level of each, the three together kept 5% in every profile of variances that was simulated.
OWN_LEVEL = 0.04
# Degrees of freedom are rounded down to steps of this part, so that critical values can be kept.
STEP = 0.02

PerStudy = Float[np.ndarray, " studies"]
PerArm = Float[np.ndarray, "studies others"]


@dataclass(frozen=True)
class Differences:
    """Each arm's mean minus the baseline's, and three standard errors of it.

    ``apart_degrees`` are those of ``apart``; ``pooled`` has (arms − 1)(seeds − 1) and ``own`` has
    seeds − 1.
    """

    value: PerArm
    pooled: PerStudy
    apart: PerStudy
    apart_degrees: PerStudy
    own: PerArm
    seeds: int

    @property
    def others(self) -> int:
        """How many arms are compared with the baseline."""
        return self.value.shape[1]

    @property
    def pooled_degrees(self) -> int:
        """Degrees of freedom of the pooled noise."""
        return self.others * (self.seeds - 1)

    @cached_property
    def widths(self) -> tuple[PerArm, PerArm, PerArm]:
        """Half the simultaneous 95% intervals by each of the three errors."""
        pooled = dunnett(arms=self.others, degrees=self.pooled_degrees) * self.pooled
        level = own_level(self.others)
        own = float(stats.t.isf(level / 2, self.seeds - 1)) * self.own
        apart = _dunnetts(self.others, self.apart_degrees) * self.apart
        ones = np.ones((1, self.others))
        return pooled[:, None] * ones, apart[:, None] * ones, own

    @cached_property
    def width(self) -> PerArm:
        """Half the simultaneous 95% interval: the widest of the three."""
        return np.maximum.reduce(self.widths)

    def p(self, study: int = 0) -> list[float]:
        """For each arm how surprising its difference is where none differs, adjusted for all.

        The largest of the three tests' p values: below 0.05 exactly where the interval leaves zero
        out.
        """
        degrees = float(_rounded(self.others, self.apart_degrees)[study])
        adjust = LEVEL / own_level(self.others)
        found: list[float] = []
        for value, own in zip(self.value[study], self.own[study], strict=True):
            of_own = 2 * float(stats.t.sf(_ratio(value, own), self.seeds - 1))
            found.append(
                max(
                    dunnett_p(
                        _ratio(value, self.pooled[study]),
                        arms=self.others,
                        degrees=self.pooled_degrees,
                    ),
                    dunnett_p(_ratio(value, self.apart[study]), arms=self.others, degrees=degrees),
                    min(1.0, adjust * of_own),
                )
            )
        return found

    def above_p(self, bound: float) -> PerArm:
        """One-sided p of each arm alone that its difference is not above `bound`: the largest."""
        far = self.value - bound
        tests = (
            stats.t.sf(far / self.pooled[:, None], self.pooled_degrees),
            stats.t.sf(far / self.apart[:, None], self.apart_degrees[:, None]),
            # An arm that keeps its distance to the last bit has no error of its own.
            stats.t.sf(far / np.maximum(self.own, 1e-300), self.seeds - 1),
        )
        return np.maximum.reduce([np.asarray(each) for each in tests])

    def below_p(self, bound: float) -> PerArm:
        """One-sided p of each arm alone that its difference is not below `bound`: the largest."""
        return self.mirrored.above_p(-bound)

    @cached_property
    def mirrored(self) -> "Differences":
        """The same with the sign of every difference turned."""
        errors = (self.pooled, self.apart, self.apart_degrees, self.own)
        return Differences(-self.value, *errors, self.seeds)

    def equivalence_width(self, level: float) -> PerArm:
        """What |difference| must stay below the margin by, to be equivalent at this level."""
        pooled = float(stats.t.isf(level, self.pooled_degrees)) * self.pooled
        apart = np.asarray(stats.t.isf(level, self.apart_degrees)) * self.apart
        own = float(stats.t.isf(level, self.seeds - 1)) * self.own
        return np.maximum(np.maximum(pooled, apart)[:, None], own)


def differences(tables: Float[np.ndarray, "studies arms seeds"]) -> Differences:
    """The differences to the first arm; two arms and two seeds at least."""
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
    """What is left of score = arm + seed + noise when arm and seed are taken off."""
    return (
        tables
        - tables.mean(axis=-1, keepdims=True)
        - tables.mean(axis=-2, keepdims=True)
        + tables.mean(axis=(-2, -1), keepdims=True)
    )


def own_level(others: int) -> float:
    """The level of an arm's own interval; beside a single arm there is nothing to adjust for."""
    return LEVEL if others == 1 else OWN_LEVEL


@lru_cache(maxsize=512)
def detectable(*, arms: int, seeds: int, power: float) -> float:
    """The true difference, in deviations of the noise, that one arm shows with this probability.

    All arms vary alike. From studies drawn with a fixed seed.
    """
    drawn = _drawn(arms, seeds)
    return float(np.quantile(drawn.width[:, 0] - drawn.value[:, 0], power))


@lru_cache(maxsize=512)
def provable(*, arms: int, seeds: int, power: float) -> float:
    """The margin, in deviations of the noise, within which an equal arm is shown to match.

    With this probability, for each arm, tested together with all others (the first step of Holm).
    """
    drawn = _drawn(arms, seeds)
    room = drawn.equivalence_width(LEVEL / (arms - 1))[:, 0]
    return float(np.quantile(np.abs(drawn.value[:, 0]) + room, power))


@lru_cache(maxsize=32)
def _drawn(arms: int, seeds: int) -> Differences:
    """Studies in which nothing differs and the noise is 1; fewer of them where each is large."""
    studies = max(2000, min(10_000, 1_500_000 // (arms * seeds)))
    noise = np.random.default_rng([arms, seeds]).normal(size=(studies, arms, seeds))
    return differences(noise)


def _dunnetts(others: int, degrees: PerStudy) -> PerStudy:
    rounded = _rounded(others, degrees)
    kept = {each: dunnett(arms=others, degrees=float(each)) for each in np.unique(rounded)}
    return np.array([kept[each] for each in rounded])


def _rounded(others: int, degrees: PerStudy) -> PerStudy:
    if others == 1:
        # Then all studies have the same, which is exact.
        return degrees
    return np.round((1 + STEP) ** np.floor(np.log(degrees) / math.log1p(STEP) + 1e-9), 6)


def _ratio(value: float, error: float) -> float:
    return abs(value) / error if error > 0 else math.inf
