"""What a few seeds can tell: paired differences to a baseline, and how small one could be seen.

The arms of a task share their seeds, so a score is arm + seed + noise (the two-way layout), and the
noise is pooled over the arms. Differences to the baseline get simultaneous intervals: Dunnett's
two-sided critical value, for the residual's (arms − 1)(seeds − 1) degrees of freedom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special, stats
from scipy.optimize import brentq

LEVEL = 0.05
# A baseline learned where its seeds beat chance in a one-sided t test at this level.
CHANCE_LEVEL = 0.05
POWER = 0.80

Better = Literal["higher", "lower"]
Scores = Mapping[str, Mapping[int, float]]

Standing = Literal[
    "compared", "baseline did not learn", "baseline incomplete", "one seed", "no spread", "one arm"
]


@dataclass(frozen=True)
class Estimate:
    """An arm's mean over its seeds and their standard deviation (None for one seed).

    ``low`` and ``high`` bound the mean at 95%, from the pooled variance; None for arms that are
    not in the pool and where there is no spread to pool.
    """

    value: float
    deviation: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """An arm's mean minus the baseline's, over the same seeds.

    ``low`` and ``high`` are simultaneous 95% bounds and ``p`` is adjusted for the number of arms;
    None where the seeds do not allow them.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """The arms of one task beside their baseline.

    ``detectable`` is the difference that a study of this size sees with 80% power, if the seeds
    vary as they did here. ``uneven`` names an arm that varies clearly more than the others do, for
    which the pooled variance is too small.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    means: dict[str, Estimate]
    differences: dict[str, Difference]
    incomplete: tuple[str, ...]
    deviation: float | None = None
    degrees: int = 0
    critical: float | None = None
    detectable: float | None = None
    uneven: str | None = None


@dataclass(frozen=True)
class Count:
    """Seeds that solved the task, out of those that ended; exact 95% bounds on the share.

    ``p`` compares with the baseline, adjusted for the number of arms; None where nothing is
    compared.
    """

    solved: int
    seeds: int
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True)
class Tally:
    """The arms of a task that a run either solves or does not.

    ``lowest`` is the largest count, below the baseline's, that a study of this size tells from it
    when all arms are tested; None where not even 0 would be.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    counts: dict[str, Count]
    incomplete: tuple[str, ...]
    lowest: int | None = None


def compare(
    scores: Scores, *, baseline: str, seeds: Sequence[int], chance: float, better: Better
) -> Comparison:
    """Each complete arm against the baseline.

    An arm that lacks the score of a seed is named as incomplete: it keeps its mean, is left out of
    the pool and is compared with nothing.
    """
    complete = [arm for arm in scores if all(seed in scores[arm] for seed in seeds)]
    table = np.array([[scores[arm][seed] for seed in seeds] for arm in complete])
    means = {arm: _estimate(list(scores[arm].values())) for arm in scores if scores[arm]}
    result = Comparison(
        standing="baseline incomplete",
        baseline=baseline,
        seeds=tuple(seeds),
        means=means,
        differences={},
        incomplete=tuple(arm for arm in scores if arm not in complete),
    )
    if len(complete) > 0 and len(seeds) > 1:
        margin = _mean_margin(table)
        bounded = {
            arm: replace(means[arm], low=means[arm].value - margin, high=means[arm].value + margin)
            for arm in complete
            if margin > 0
        }
        result = replace(result, means=means | bounded)
    if baseline not in complete:
        return result
    if beats_chance(list(scores[baseline].values()), chance=chance, better=better) is False:
        return replace(result, standing="baseline did not learn")
    others = [arm for arm in complete if arm != baseline]
    if not others:
        return replace(result, standing="one arm")
    raw = {arm: Difference(means[arm].value - means[baseline].value) for arm in others}
    if len(seeds) == 1:
        return replace(result, standing="one seed", differences=raw)
    deviation = residual_deviation(table)
    if deviation == 0:
        return replace(result, standing="no spread", differences=raw, deviation=0.0)
    degrees = (len(complete) - 1) * (len(seeds) - 1)
    error = deviation * math.sqrt(2 / len(seeds))
    critical = dunnett(arms=len(others), degrees=degrees)
    return replace(
        result,
        standing="compared",
        differences={
            arm: Difference(
                value=each.value,
                low=each.value - critical * error,
                high=each.value + critical * error,
                p=dunnett_p(each.value / error, arms=len(others), degrees=degrees),
            )
            for arm, each in raw.items()
        },
        deviation=deviation,
        degrees=degrees,
        critical=critical,
        detectable=error * detectable_shift(critical, degrees=degrees),
        uneven=_uneven(table, complete),
    )


def contrast(scores: Scores, result: Comparison, *, arms: tuple[str, str]) -> Difference | None:
    """The second arm minus the first, at 95% for this pair alone; None where either is incomplete.

    Uses the pooled variance of `result`, in which both arms take part.
    """
    if any(arm not in scores or arm in result.incomplete for arm in arms):
        return None
    first, second = (result.means[arm].value for arm in arms)
    if not result.deviation:
        return Difference(second - first)
    error = result.deviation * math.sqrt(2 / len(result.seeds))
    margin = float(stats.t.ppf(1 - LEVEL / 2, result.degrees)) * error
    value = second - first
    p = 2 * float(stats.t.sf(abs(value) / error, result.degrees))
    return Difference(value, value - margin, value + margin, p)


def tally(
    scores: Scores, *, baseline: str, seeds: Sequence[int], solved: float, better: Better
) -> Tally:
    """How many seeds of each arm solved the task, and Boschloo's exact test against the baseline.

    The baseline learned if it solved more than half of its seeds. p values are Holm's over the
    complete arms. The test does not use the pairing, which is the careful side.
    """
    complete = [arm for arm in scores if all(seed in scores[arm] for seed in seeds)]
    counts = {arm: _count(scores[arm], solved, better) for arm in scores if scores[arm]}
    result = Tally(
        standing="baseline incomplete",
        baseline=baseline,
        seeds=tuple(seeds),
        counts=counts,
        incomplete=tuple(arm for arm in scores if arm not in complete),
    )
    if baseline not in complete:
        return result
    base = counts[baseline]
    if 2 * base.solved <= base.seeds:
        return replace(result, standing="baseline did not learn")
    others = [arm for arm in complete if arm != baseline]
    if not others:
        return replace(result, standing="one arm")
    if len(seeds) == 1:
        return replace(result, standing="one seed")
    raw = {arm: boschloo(counts[arm].solved, base.solved, seeds=base.seeds) for arm in others}
    adjusted = holm(raw)
    told = [
        count
        for count in range(base.solved)
        if boschloo(count, base.solved, seeds=base.seeds) * len(others) < LEVEL
    ]
    return replace(
        result,
        standing="compared",
        counts=counts | {arm: replace(counts[arm], p=adjusted[arm]) for arm in others},
        lowest=max(told, default=None),
    )


def reaches(score: float, threshold: float, *, better: Better) -> bool:
    """Whether a score is at the threshold or on its good side."""
    return score >= threshold if better == "higher" else score <= threshold


def beats_chance(scores: Sequence[float], *, chance: float, better: Better) -> bool | None:
    """Whether the scores are clearly better than chance; None for one score on the good side."""
    gains = np.array(scores) - chance
    if better == "lower":
        gains = -gains
    mean = float(gains.mean())
    if mean <= 0:
        return False
    if len(scores) == 1:
        return None
    error = float(gains.std(ddof=1)) / math.sqrt(len(scores))
    return error == 0 or float(stats.t.sf(mean / error, len(scores) - 1)) < CHANCE_LEVEL


def residual_deviation(table: Float[np.ndarray, "arms seeds"]) -> float:
    """The standard deviation of the noise in score = arm + seed + noise; 0 where it is rounding."""
    residuals = _residuals(table)
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    deviation = math.sqrt(float((residuals**2).sum()) / degrees)
    # Doubly centred equal numbers leave rounding errors, not exact zeros.
    return deviation if deviation > 1e-12 * max(1.0, float(np.abs(table).max())) else 0.0


@lru_cache(maxsize=256)
def dunnett(*, arms: int, degrees: int, level: float = LEVEL) -> float:
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


def dunnett_p(statistic: float, *, arms: int, degrees: int) -> float:
    """How probable it is that the largest of `arms` |t| reaches this one where no arm differs."""
    return min(1.0, max(0.0, 1.0 - _inside(abs(statistic), arms, degrees)))


@lru_cache(maxsize=256)
def detectable_shift(critical: float, *, degrees: int, power: float = POWER) -> float:
    """The true difference, in standard errors, that passes `critical` with this probability."""
    scale, weights = _chi(degrees)

    def seen(shift: float) -> float:
        above = special.ndtr(shift - critical * scale) + special.ndtr(-shift - critical * scale)
        return float(weights @ above)

    return brentq(lambda shift: seen(shift) - power, 0.0, 10 * critical + 10, xtol=1e-9)


@lru_cache(maxsize=1024)
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


def _estimate(scores: Sequence[float]) -> Estimate:
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Estimate(float(np.mean(scores)), deviation)


def _count(scores: Mapping[int, float], solved: float, better: Better) -> Count:
    reached = sum(reaches(score, solved, better=better) for score in scores.values())
    return Count(reached, len(scores), *clopper_pearson(reached, len(scores)))


def _residuals(table: Float[np.ndarray, "arms seeds"]) -> Float[np.ndarray, "arms seeds"]:
    return (
        table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    )


def _mean_margin(table: Float[np.ndarray, "arms seeds"]) -> float:
    """Half the 95% interval of an arm's mean: seed and noise variance, pooled over the arms."""
    arms, seeds = table.shape
    between = arms * float(table.mean(axis=0).var(ddof=1))
    noise = float((_residuals(table) ** 2).sum()) / (seeds - 1)
    total = between + noise
    if total <= 1e-24:
        return 0.0
    # Satterthwaite's degrees of freedom for a sum of two mean squares.
    inner = noise**2 / (arms - 1) if arms > 1 else 0.0
    degrees = (seeds - 1) * total**2 / (between**2 + inner)
    return float(stats.t.ppf(1 - LEVEL / 2, degrees)) * math.sqrt(total / arms / seeds)


def _uneven(table: Float[np.ndarray, "arms seeds"], arms: Sequence[str]) -> str | None:
    """The arm whose noise is too large to be pooled with the others', by Cochran's C at 1%."""
    if len(arms) < 3:
        return None
    variances = (_residuals(table) ** 2).sum(axis=1)
    largest = int(variances.argmax())
    freedom = table.shape[1] - 1
    quantile = stats.f.isf(0.01 / len(arms), freedom, (len(arms) - 1) * freedom)
    limit = 1 / (1 + (len(arms) - 1) / quantile)
    return arms[largest] if variances[largest] > limit * variances.sum() else None


def _inside(value: float, arms: int, degrees: int) -> float:
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


@lru_cache(maxsize=64)
def _chi(degrees: int) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Values of s = χ/√degrees and their weights, even in log s, out to where the mass is 1e-16."""
    # The first bound always holds, but only the second follows the width at many degrees.
    left = 36 / degrees + 0.5 if degrees < 256 else 12 / math.sqrt(degrees)
    x = np.linspace(-left, 6 / math.sqrt(degrees), 161)
    weights = np.exp(degrees * (x - np.expm1(2 * x) / 2))
    return np.exp(x), weights / weights.sum()
