"""Sums of means of independent samples with their intervals: comparisons of several arms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from qkvbench.results.record import Record
from qkvbench.results.store import Store


@dataclass(frozen=True)
class Sum:
    """A sum of means of independent samples, with its variance and Satterthwaite's degrees."""

    value: float
    variance: float
    degrees: float

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return float(stats.t.ppf(0.975, self.degrees)) * math.sqrt(self.variance)

    @property
    def p(self) -> float:
        """Of no difference from zero."""
        return float(2 * stats.t.sf(abs(self.value) / math.sqrt(self.variance), self.degrees))


def sum_of(*parts: tuple[float, Sequence[float]]) -> Sum:
    """The means of these samples, each times its factor, added."""
    value = sum(factor * float(np.mean(scores)) for factor, scores in parts)
    own = [
        (factor**2 * float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1)
        for factor, scores in parts
    ]
    variance = max(sum(each for each, _ in own), 1e-18)
    degrees = variance**2 / max(sum(each**2 / count for each, count in own), 1e-36)
    return Sum(value, variance, degrees)


def done(folder: Path) -> list[Record]:
    """The runs of a folder that have a result."""
    return [run for run in Store(folder).runs().good if run.status == "done"]


def loss(run: Record) -> float:
    """The score, with the sign that makes more of it worse."""
    return run.score if run.metric.better == "lower" else -run.score
