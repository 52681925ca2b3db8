"""The difference of two arms on one task, from the scores of these two alone: Welch's t test.

Nothing is pooled over other arms, so the result does not depend on who else is in a study, and a
noisy arm costs no other its power. Pairing by seed is not used: in this bench's studies the seed
explains a median of 6% of a score's variance, and a paired test has half of the degrees of freedom.

Proportions (unit "share") are analysed as logits, because the noise of an accuracy shrinks towards
0 and 1, and everything is given back in the metric's unit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import special

from qkvbench.results.critical import LEVEL

# A proportion is moved away from 0 and 1 by half of one in so many, where its logit is infinite.
COUNTS_AS_ALL = 1000
# Nodes, for each arm, of the quadrature over its sample variance.
NODES = 24

Some = Float[np.ndarray, "*some"]


@dataclass(frozen=True)
class Unit:
    """How the scores of one unit are analysed."""

    logit: bool

    def analysed(self, scores: Some | Sequence[float]) -> Some:
        """The scores on the scale on which they are compared."""
        values = np.asarray(scores, dtype=float)
        if not self.logit:
            return values
        within = (values * COUNTS_AS_ALL + 0.5) / (COUNTS_AS_ALL + 1)
        return np.asarray(special.logit(within))

    def restored(self, value: float) -> float:
        """A score from its value on that scale; from 0 to 1 if it is a proportion."""
        if not self.logit:
            return value
        share = float(special.expit(value)) * (COUNTS_AS_ALL + 1) - 0.5
        return min(1.0, max(0.0, share / COUNTS_AS_ALL))


def unit_of(name: str) -> Unit:
    """The unit of a metric, by the name that it has in a record."""
    return Unit(logit=name == "share")


@dataclass(frozen=True)
class Welch:
    """The second sample's mean minus the first's, on the scale of analysis.

    ``error`` is its standard error, with ``degrees`` of freedom, and ``errors`` are those of the
    two means; all are 0 if no score varies.
    """

    base: float
    value: float
    error: float
    degrees: float
    errors: tuple[float, float] = (0.0, 0.0)

    def bounds(self, level: float, unit: Unit) -> tuple[float, float]:
        """The two-sided interval of the difference at this level, in the unit of the scores.

        It combines the intervals of both means: without logits it is Welch's, and with them each
        mean is as uncertain where it lies as the logit says (MOVER: Zou and Donner, 2008). Zero is
        in it if the p value says so.
        """
        reach = _quantile(level / 2, self.degrees)
        first, second = self.base, self.base + self.value
        (low, middle, high), (other_low, other_middle, other_high) = (
            [unit.restored(mean + side * reach * error) for side in (-1, 0, 1)]
            for mean, error in zip((first, second), self.errors, strict=True)
        )
        value = other_middle - middle
        ends = [
            value - math.hypot(other_middle - other_low, high - middle),
            value + math.hypot(other_high - other_middle, middle - low),
        ]
        for at, end in enumerate(
            (self.value - reach * self.error, self.value + reach * self.error)
        ):
            if ends[at] * end < 0:
                # The logit's own bound, laid off from either mean, so that the order is no matter.
                from_first = unit.restored(first + end) - middle
                ends[at] = (from_first + other_middle - unit.restored(second - end)) / 2
        return ends[0], ends[1]

    @property
    def p(self) -> float:
        """The two-sided p value of no difference."""
        return 2 * self.above_p(0.0) if self.value > 0 else 2 * self.below_p(0.0)

    def above_p(self, bound: float) -> float:
        """One-sided p that the difference is not above `bound`."""
        return _tail((self.value - bound) / self.error, self.degrees)

    def below_p(self, bound: float) -> float:
        """One-sided p that the difference is not below `bound`."""
        return _tail((bound - self.value) / self.error, self.degrees)


def welch(first: Sequence[float], second: Sequence[float], unit: Unit) -> Welch:
    """The comparison of two samples of scores, each of at least two."""
    sizes = (len(first), len(second))
    means, variances = zip(*(_moments(tuple(each), unit) for each in (first, second)), strict=True)
    parts = [variance / size for variance, size in zip(variances, sizes, strict=True)]
    error = math.sqrt(sum(parts))
    # Scores that are equal but for rounding have no spread.
    if error <= 1e-12 * max(1.0, *(abs(mean) for mean in means)):
        return Welch(means[0], means[1] - means[0], 0.0, 0.0)
    spread = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    degrees = sum(parts) ** 2 / spread
    errors = math.sqrt(parts[0]), math.sqrt(parts[1])
    return Welch(means[0], means[1] - means[0], error, degrees, errors)


@lru_cache(maxsize=8192)
def _moments(scores: tuple[float, ...], unit: Unit) -> tuple[float, float]:
    """Mean and variance; cached, because an arm is compared with each of the others."""
    values = unit.analysed(scores)
    return float(values.mean()), float(values.var(ddof=1))


@dataclass(frozen=True)
class Design:
    """Two arms with these true deviations, on the scale of analysis, and so many seeds each."""

    deviations: tuple[float, float]
    seeds: int

    def detects(self, difference: float, level: float) -> float:
        """The probability that a true difference of this size is significant, on its side."""
        critical, error = _samples(self, level / 2)
        return float(special.ndtr((difference - critical) / error).mean())

    def matches(self, margin: float, level: float) -> float:
        """The probability that two equal arms are shown to be within the margin of each other."""
        critical, error = _samples(self, level)
        within = np.maximum(0.0, margin - critical) / error
        return float((2 * special.ndtr(within) - 1).mean())


@lru_cache(maxsize=8)
def _samples(design: Design, tail: float) -> tuple[Some, float]:
    """Equally likely half widths of the interval, and the true standard error.

    The two sample variances are independent chi-squares: a quadrature over both, which is exact in
    the random degrees of freedom too.
    """
    shares = _chi_square_shares(design.seeds - 1)
    first, second = (deviation**2 / design.seeds for deviation in design.deviations)
    one, other = first * shares[:, None], second * shares[None]
    total = one + other
    degrees = total**2 / ((one**2 + other**2) / (design.seeds - 1))
    critical = -np.asarray(special.stdtrit(degrees, tail)) * np.sqrt(total)
    return critical, math.sqrt(first + second)


@lru_cache(maxsize=1024)
def detectable_difference(deviation: float, *, seeds: int, level: float, power: float) -> float:
    """The true difference, on the scale of analysis, that is significant with this power.

    Between two arms with the same deviation.
    """
    design = Design((deviation, deviation), seeds)
    return _smallest(lambda size: design.detects(size, level) >= power, deviation)


@lru_cache(maxsize=1024)
def provable_margin(deviation: float, *, seeds: int, level: float, power: float) -> float:
    """The margin within which an equal arm of this deviation is shown to match, with this power."""
    design = Design((deviation, deviation), seeds)
    return _smallest(lambda size: design.matches(size, level) >= power, deviation)


def mean_bounds(scores: Sequence[float], unit: Unit) -> tuple[float, float] | None:
    """The 95% interval of an arm's mean from its own seeds; None for one seed or no spread."""
    if len(scores) < 2:
        return None
    values = unit.analysed(scores)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    half = _quantile(LEVEL / 2, len(values) - 1) * error
    mean = float(values.mean())
    return unit.restored(mean - half), unit.restored(mean + half)


def _smallest(sufficient: Callable[[float], bool], deviation: float) -> float:
    low, high = 0.0, deviation
    while not sufficient(high):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if sufficient(middle) else (middle, high)
    return high


@lru_cache(maxsize=256)
def _chi_square_shares(degrees: int) -> Float[np.ndarray, " nodes"]:
    """Equally likely values of a sample variance over the true one."""
    middles = (np.arange(NODES) + 0.5) / NODES
    return 2 * np.asarray(special.gammaincinv(degrees / 2, middles)) / degrees


def _quantile(tail: float, degrees: float) -> float:
    return -float(special.stdtrit(degrees, tail))


def _tail(statistic: float, degrees: float) -> float:
    return float(special.stdtr(degrees, -statistic))
