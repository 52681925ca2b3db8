"""One figure over tasks: 0 is a model without attention, 1 the baseline.

On each task an arm's mean is put on this scale, so that tasks count alike; the worst task stands
beside the mean over tasks, because a mean hides it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from qkvbench.results.critical import LEVEL

PerSeed = Float[np.ndarray, " seeds"]


class Scale(NamedTuple):
    """The scores of one task: of the control without attention, of the baseline and of an arm."""

    floor: PerSeed
    base: PerSeed
    arm: PerSeed


@dataclass(frozen=True)
class Aggregate:
    """An arm over several tasks, where 0 is no attention and 1 the baseline's mean.

    ``mean`` is over the tasks, with 95% bounds for this arm alone; ``worst`` is its mean on
    ``worst_task``.
    """

    tasks: tuple[str, ...]
    mean: float
    low: float
    high: float
    worst: float
    worst_task: str


def aggregate(scales: Mapping[str, Scale]) -> Aggregate | None:
    """The arm over these tasks; None if there are fewer than two, or one of them has one seed.

    The bounds cover the seeds of arm and baseline (Welch on each task); the two ends of the scale
    are taken as known.
    """
    if len(scales) < 2 or any(len(each.base) < 2 for each in scales.values()):
        return None
    means: dict[str, float] = {}
    parts: list[tuple[float, int]] = []
    for task, (floor, base, arm) in scales.items():
        length = float(base.mean() - floor.mean())
        means[task] = float(arm.mean() - floor.mean()) / length
        for scores in (base, arm):
            count = len(scores)
            parts.append((float(scores.var(ddof=1)) / count / length**2, count - 1))
    variance = sum(part for part, _ in parts)
    mean = sum(means.values()) / len(means)
    half = 0.0
    if variance > 0:
        # Satterthwaite's degrees of freedom of a sum of variances.
        degrees = variance**2 / sum(part**2 / own for part, own in parts)
        half = -float(special.stdtrit(degrees, LEVEL / 2)) * math.sqrt(variance) / len(means)
    worst = min(means, key=means.__getitem__)
    return Aggregate(tuple(means), mean, mean - half, mean + half, means[worst], worst)
