"""The number of seeds that a question needs, from the noise of a pilot study.

Each arm is planned with its own noise and the baseline's, since these two alone decide its verdict.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, clopper_pearson
from qkvbench.results.record import MetricInfo
from qkvbench.results.stats import CERTAIN, POWER, analysed_bound
from qkvbench.results.welch import Design, unit_of

# A pilot's deviation is itself uncertain: the careful plan is enough with this probability.
CONFIDENCE = 0.8
MAX_SEEDS = 200
MAX_COUNTED_SEEDS = 80


@dataclass(frozen=True)
class SeedsNeeded:
    """Seeds, for each of two arms, with 80% power; None if more than `MAX_SEEDS`.

    ``likely`` and ``certain``: a true loss of the margin is found at that grade. ``match``: an
    equal arm is shown to be within the margin, at the likely grade.
    """

    likely: int | None
    certain: int | None
    match: int | None


@dataclass(frozen=True)
class ArmPlan:
    """The seeds that one arm needs.

    ``deviations`` are the baseline's and its own, on the scale of analysis. ``careful`` is for the
    upper `CONFIDENCE` bound of the error that they give.
    """

    arm: str
    deviations: tuple[float, float]
    expected: SeedsNeeded
    careful: SeedsNeeded


def plan_arm(
    arm: str, base: Sequence[float], own: Sequence[float], *, metric: MetricInfo, margin: float
) -> ArmPlan:
    """The plan of one arm from its scores and the baseline's, at least two of each."""
    unit = unit_of(metric.unit)
    values = [unit.analysed(each) for each in (base, own)]
    first, second = (float(each.std(ddof=1)) for each in values)
    # The margin on the scale of analysis, on the side of a loss; on the other one if no score is
    # so far on this.
    centre = float(values[0].mean())
    mean = unit.restored(centre)
    lost, gained = mean - margin, mean + margin
    if metric.better == "lower":
        lost, gained = gained, lost
    sides = [abs(analysed_bound(unit, each) - centre) for each in (lost, gained)]
    size = next((each for each in sides if math.isfinite(each)), math.inf)
    wider = _upper_ratio([(first, len(base)), (second, len(own))])
    return ArmPlan(
        arm,
        (first, second),
        seeds_needed((first, second), size),
        seeds_needed((wider * first, wider * second), size),
    )


def seeds_needed(deviations: tuple[float, float], size: float) -> SeedsNeeded:
    """The seeds for a loss, or a margin, of this size on the scale of analysis."""
    if deviations == (0.0, 0.0):
        return SeedsNeeded(2, 2, 2)

    def enough(power: Callable[[Design], float]) -> int | None:
        return _smallest(lambda seeds: power(Design(deviations, seeds)) >= POWER)

    return SeedsNeeded(
        likely=enough(lambda design: design.detects(size, LEVEL)),
        certain=enough(lambda design: design.detects(size, CERTAIN)),
        match=enough(lambda design: design.matches(size, LEVEL)),
    )


@dataclass(frozen=True)
class CountPlan:
    """Seeds at which a proportion of solved seeds that is the margin lower is found as likely.

    ``share`` is the baseline's, as a mean that allows for its few seeds; ``careful`` its lower
    bound. None if more than `MAX_COUNTED_SEEDS`.
    """

    share: float
    careful_share: float
    seeds: int | None
    careful: int | None


def plan_counts(solved: int, seeds: int, *, margin: float) -> CountPlan:
    """The plan for counts, from a baseline that solved `solved` of `seeds`."""
    # Laplace's mean: from 5 of 5 nobody knows that it is all.
    share = (solved + 1) / (seeds + 2)
    lower = clopper_pearson(solved, seeds, level=2 * (1 - CONFIDENCE))[0]
    # The variance of a proportion is largest in the middle.
    careful = max(0.5, lower)
    return CountPlan(
        share,
        careful,
        counted_seeds_needed(share=share, margin=margin),
        counted_seeds_needed(share=careful, margin=margin),
    )


def counted_seeds_needed(*, share: float, margin: float) -> int | None:
    """Seeds at which a proportion `margin` below `share` is significant at `LEVEL`, 80% power.

    For arms that all solve the task at one step, when the log-rank test is Fisher's exact one; a
    difference in speed is found with fewer seeds.
    """
    lower = max(0.0, share - margin)
    for seeds in range(2, MAX_COUNTED_SEEDS + 1):
        counts = np.arange(seeds + 1)
        of_arm, of_base = (stats.binom.pmf(counts, seeds, each) for each in (lower, share))
        significant = (fisher_table(seeds) < LEVEL) & (counts[:, None] < counts[None])
        if float(of_arm @ significant @ of_base) >= POWER:
            return seeds
    return None


def fisher_table(seeds: int) -> Float[np.ndarray, "first second"]:
    """Two-sided p of Fisher's exact test for every pair of counts out of `seeds`."""
    counts = np.arange(seeds + 1)
    total = counts[:, None] + counts[None]
    smaller = np.minimum(counts[:, None], counts[None])
    # With equal group sizes the distribution is symmetric: twice the smaller tail.
    tail = stats.hypergeom.cdf(smaller, 2 * seeds, total, seeds)
    return np.minimum(1.0, 2 * np.asarray(tail))


def _upper_ratio(samples: Sequence[tuple[float, int]]) -> float:
    """The upper confidence bound of the error of a difference, over its estimate."""
    parts = [deviation**2 / count for deviation, count in samples]
    if sum(parts) == 0:
        return 1.0
    spread = sum(part**2 / (count - 1) for part, (_, count) in zip(parts, samples, strict=True))
    degrees = sum(parts) ** 2 / spread
    return math.sqrt(degrees / float(stats.chi2.ppf(1 - CONFIDENCE, degrees)))


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
