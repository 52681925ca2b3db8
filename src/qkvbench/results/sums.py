"""Sums of means of independent samples with their intervals: questions on more than two arms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from qkvbench.results.critical import LEVEL

# The variance of scores that differ by rounding alone.
NO_SPREAD = 1e-18


@dataclass(frozen=True)
class Sum:
    """A sum of means of independent samples, with its variance and Satterthwaite's degrees."""

    value: float
    variance: float
    degrees: float

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return -float(special.stdtrit(self.degrees, LEVEL / 2)) * math.sqrt(self.variance)

    @property
    def p(self) -> float:
        """The two-sided p value of zero; 1 without spread, of which nothing can be said."""
        if self.variance <= NO_SPREAD:
            return 1.0
        return 2 * float(special.stdtr(self.degrees, -abs(self.value) / math.sqrt(self.variance)))


def sum_of(*parts: tuple[float, Sequence[float]]) -> Sum:
    """The means of these samples, each of at least two and times its factor, added."""
    value = sum(factor * float(np.mean(scores)) for factor, scores in parts)
    own = [
        (factor**2 * float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1)
        for factor, scores in parts
    ]
    variance = max(sum(each for each, _ in own), NO_SPREAD)
    degrees = variance**2 / max(sum(each**2 / count for each, count in own), 1e-36)
    return Sum(value, variance, degrees)
