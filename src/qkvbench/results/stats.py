"""Statistics for few seeds: paired differences to a baseline, and tests of equivalence.

The arms of a task share their seeds, so a score is arm + seed + noise (`layout`). A difference is
*clear* if its simultaneous interval excludes zero; an arm *matches* if two one-sided tests show its
difference to be within a margin. An arm can be neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, boschloo, clopper_pearson, holm, not_lower_p
from qkvbench.results.layout import (
    Differences,
    detectable_difference,
    differences,
    provable_margin,
    residuals,
)

# A baseline learned if its seeds beat chance in a one-sided t test at this level.
CHANCE_LEVEL = 0.05
POWER = 0.80

Better = Literal["higher", "lower"]
Scores = Mapping[str, Mapping[int, float]]

Standing = Literal[
    "compared",
    "baseline did not learn",
    "baseline incomplete",
    "attention not needed",
    "one seed",
    "no spread",
    "one arm",
]

# What attention is worth on a task must be so many times the smallest detectable difference: an
# arm's loss is a part of it, and on less than that hardly any part could be seen.
WORTH = 2.0

# "not worse" is non-inferiority: a loss of the margin is excluded, a gain is not.
Verdict = Literal["better", "worse", "matches", "not worse", "not distinguishable"]


@dataclass(frozen=True)
class Estimate:
    """An arm's mean over its seeds and their standard deviation (None for one seed).

    ``low`` and ``high`` bound the mean at 95%, from the pooled variance; None for arms that are
    not in the pool, or if the pooled variance is zero.
    """

    value: float
    deviation: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """An arm's mean minus the baseline's, over the same seeds.

    ``low`` and ``high`` are 95% bounds and ``p`` is the corresponding p value; in a study both are
    simultaneous over the arms. ``match_p`` is of the two one-sided tests for a difference within
    the margin, ``not_worse_p`` of the one on the bad side, both by Holm over the family; None if
    there is one seed or no margin.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    match_p: float | None = None
    not_worse_p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def matches(self) -> bool:
        """Whether it is shown to be within the margin."""
        return self.match_p is not None and self.match_p < LEVEL

    def verdict(self, better: Better) -> Verdict:
        """The verdict. A difference can be clear *and* within the margin; clear comes first."""
        if self.clear:
            return "better" if (self.value > 0) == (better == "higher") else "worse"
        if self.matches:
            return "matches"
        if self.not_worse_p is not None and self.not_worse_p < LEVEL:
            return "not worse"
        return "not distinguishable"


@dataclass(frozen=True)
class Comparison:
    """The arms of one task compared with their baseline.

    ``worth`` is what the baseline gains over the control without attention, positive if attention
    helps; None if the study has no such control. If it is below `WORTH` times ``detectable``,
    nothing is compared.

    ``deviation`` is the pooled noise, with ``degrees`` of freedom. ``detectable`` is the difference
    that a study of this size detects with 80% power if all arms have this noise; ``provable`` is
    the margin within which it shows an equal arm to match, with the same power.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    means: dict[str, Estimate]
    differences: dict[str, Difference]
    incomplete: tuple[str, ...]
    margin: float | None = None
    deviation: float | None = None
    degrees: int = 0
    detectable: float | None = None
    provable: float | None = None
    worth: float | None = None


@dataclass(frozen=True)
class Count:
    """Seeds that solved the task, out of those that ended; exact 95% bounds on the proportion.

    ``p`` compares with the baseline, ``match_p`` and ``not_worse_p`` are of the tests of a
    proportion within the margin; all by Holm over the arms, None if nothing is compared.
    """

    solved: int
    seeds: int
    low: float
    high: float
    p: float | None = None
    match_p: float | None = None
    not_worse_p: float | None = None


@dataclass(frozen=True)
class Tally:
    """The arms of a task that a run either solves or does not.

    ``lowest`` is the largest count below the baseline's that is significant in a study of this size
    if all arms are tested; None if not even 0 is. ``margin`` is a proportion of seeds.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    counts: dict[str, Count]
    incomplete: tuple[str, ...]
    margin: float | None = None
    lowest: int | None = None

    def verdict(self, arm: str) -> Verdict | None:
        """The verdict on an arm; None for the baseline, or if nothing is compared."""
        count = self.counts.get(arm)
        if count is None or count.p is None:
            return None
        if count.p < LEVEL:
            return "better" if count.solved > self.counts[self.baseline].solved else "worse"
        if count.match_p is not None and count.match_p < LEVEL:
            return "matches"
        if count.not_worse_p is not None and count.not_worse_p < LEVEL:
            return "not worse"
        return "not distinguishable"


def verdicts(result: Comparison | Tally, better: Better) -> dict[str, Verdict]:
    """The verdict on each arm that is compared."""
    if result.standing != "compared":
        return {}
    match result:
        case Comparison(differences=by_arm):
            return {arm: each.verdict(better) for arm, each in by_arm.items()}
        case Tally(counts=counts):
            return {arm: verdict for arm in counts if (verdict := result.verdict(arm)) is not None}


def compare(
    scores: Scores,
    *,
    baseline: str,
    seeds: Sequence[int],
    chance: float,
    better: Better,
    margin: float | None = None,
    floor: str | None = None,
) -> Comparison:
    """Each complete arm against the baseline; ``floor`` is the arm without attention, if any.

    An arm without a score for one of the seeds, because a run failed or is missing, is incomplete:
    it has a mean, but is neither pooled nor compared, so that no arm gains by losing a bad run.
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
        margin=margin,
    )
    if len(complete) > 0 and len(seeds) > 1:
        half = _mean_half_width(table)
        bounded = {
            arm: replace(means[arm], low=means[arm].value - half, high=means[arm].value + half)
            for arm in complete
            if half > 0
        }
        result = replace(result, means=means | bounded)
    if baseline not in complete:
        return result
    worth = None
    if floor in complete and floor != baseline:
        worth = means[baseline].value - means[floor].value
        worth = worth if better == "higher" else -worth
        result = replace(result, worth=worth)
    # What a model without attention reaches is learned without it, so it is the better floor.
    learned = beats_chance(list(scores[baseline].values()), chance=chance, better=better)
    if worth is None and learned is False:
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
    rows = np.array([[[scores[arm][seed] for seed in seeds] for arm in (baseline, *others)]])
    size = {"arms": len(complete), "seeds": len(seeds), "power": POWER}
    detectable = deviation * detectable_difference(**size)
    result = replace(
        result,
        deviation=deviation,
        degrees=(len(complete) - 1) * (len(seeds) - 1),
        detectable=detectable,
        provable=deviation * provable_margin(**size),
    )
    if worth is not None and worth < WORTH * detectable:
        return replace(result, standing="attention not needed")
    found = _differences(differences(rows), others, better, margin)
    return replace(result, standing="compared", differences=found)


def contrast(
    scores: Scores,
    result: Comparison,
    *,
    arms: tuple[str, str],
    better: Better = "higher",
) -> Difference | None:
    """The second arm minus the first, at 95% for this pair alone; None if either is incomplete.

    From the paired differences of the two (Student's t), independently of all other arms.
    """
    if any(arm not in scores or arm in result.incomplete for arm in arms):
        return None
    rows = np.array([[[scores[arm][seed] for seed in result.seeds] for arm in arms]])
    value = float(rows[0, 1].mean() - rows[0, 0].mean())
    if len(result.seeds) == 1 or residual_deviation(rows[0]) == 0:
        return Difference(value)
    return _differences(differences(rows), [arms[1]], better, result.margin)[arms[1]]


def tally(
    scores: Scores,
    *,
    baseline: str,
    seeds: Sequence[int],
    solved: float,
    better: Better,
    margin: float | None = None,
    diverged: Mapping[str, Sequence[int]] | None = None,
    floor: str | None = None,
) -> Tally:
    """How many seeds of each arm solved the task, and Boschloo's exact test against the baseline.

    A seed that `diverged` has not solved the task; another failure makes its arm incomplete. The
    baseline learned if it solved more than half of its seeds, and needs attention if the ``floor``,
    an arm without it, solves significantly fewer. p values are Holm's over the complete
    arms. The test ignores the pairing of the seeds, which is conservative.
    """
    unsolved: Mapping[str, Sequence[int]] = {} if diverged is None else diverged
    worst = -math.inf if better == "higher" else math.inf
    ended = {arm: {**scores[arm], **dict.fromkeys(unsolved.get(arm, ()), worst)} for arm in scores}
    complete = [arm for arm in ended if all(seed in ended[arm] for seed in seeds)]
    counts = {arm: _count(ended[arm], solved, better) for arm in ended if ended[arm]}
    result = Tally(
        standing="baseline incomplete",
        baseline=baseline,
        seeds=tuple(seeds),
        counts=counts,
        incomplete=tuple(arm for arm in scores if arm not in complete),
        margin=margin,
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
    if floor in complete and floor != baseline:
        without = counts[floor]
        p = boschloo(without.solved, base.solved, seeds=base.seeds)
        if without.solved >= base.solved or p >= LEVEL:
            return replace(result, standing="attention not needed")
    significant = [
        count
        for count in range(base.solved)
        if boschloo(count, base.solved, seeds=base.seeds) * len(others) < LEVEL
    ]
    return replace(
        result,
        standing="compared",
        counts=counts | _with_p_values(counts, base, others, margin),
        lowest=max(significant, default=None),
    )


def reaches(score: float, threshold: float, *, better: Better) -> bool:
    """Whether a score is at the threshold or on its good side."""
    return score >= threshold if better == "higher" else score <= threshold


def beats_chance(scores: Sequence[float], *, chance: float, better: Better) -> bool | None:
    """Whether the scores are significantly above chance; None for one score that is above it."""
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
    """The standard deviation of the noise in score = arm + seed + noise; 0 if it is rounding."""
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    deviation = math.sqrt(float((residuals(table) ** 2).sum()) / degrees)
    # Double centring of equal numbers leaves rounding errors instead of zeros.
    return deviation if deviation > 1e-12 * max(1.0, float(np.abs(table).max())) else 0.0


def _differences(
    layout: Differences, arms: Sequence[str], better: Better, margin: float | None
) -> dict[str, Difference]:
    """The first study's differences as values; `arms` are the family for Holm."""
    value, width = layout.value[0].tolist(), layout.width[0].tolist()
    by_arm = {
        arm: Difference(value[i], value[i] - width[i], value[i] + width[i], p)
        for i, (arm, p) in enumerate(zip(arms, layout.p(), strict=True))
    }
    if margin is None:
        return by_arm
    above, below = layout.above_p(-margin)[0].tolist(), layout.below_p(margin)[0].tolist()
    match_p = holm({arm: max(above[i], below[i]) for i, arm in enumerate(arms)})
    bad_side = above if better == "higher" else below
    not_worse_p = holm({arm: bad_side[i] for i, arm in enumerate(arms)})
    return {
        arm: replace(each, match_p=match_p[arm], not_worse_p=not_worse_p[arm])
        for arm, each in by_arm.items()
    }


def _with_p_values(
    counts: Mapping[str, Count], base: Count, others: Sequence[str], margin: float | None
) -> dict[str, Count]:
    p = holm({arm: boschloo(counts[arm].solved, base.solved, seeds=base.seeds) for arm in others})
    tested = {arm: replace(counts[arm], p=p[arm]) for arm in others}
    if margin is None:
        return tested

    def not_lower(first: Count, second: Count) -> float:
        return not_lower_p(first.solved, second.solved, seeds=base.seeds, margin=margin)

    not_worse = {arm: not_lower(counts[arm], base) for arm in others}
    match = holm({arm: max(not_worse[arm], not_lower(base, counts[arm])) for arm in others})
    not_worse = holm(not_worse)
    return {
        arm: replace(each, match_p=match[arm], not_worse_p=not_worse[arm])
        for arm, each in tested.items()
    }


def _estimate(scores: Sequence[float]) -> Estimate:
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Estimate(float(np.mean(scores)), deviation)


def _count(scores: Mapping[int, float], solved: float, better: Better) -> Count:
    reached = sum(reaches(score, solved, better=better) for score in scores.values())
    return Count(reached, len(scores), *clopper_pearson(reached, len(scores)))


def _mean_half_width(table: Float[np.ndarray, "arms seeds"]) -> float:
    """Half the width of the 95% interval of an arm's mean: seed and noise variance, pooled."""
    arms, seeds = table.shape
    between = arms * float(table.mean(axis=0).var(ddof=1))
    noise = float((residuals(table) ** 2).sum()) / (seeds - 1)
    total = between + noise
    if total <= 1e-24:
        return 0.0
    # Satterthwaite's degrees of freedom for a sum of two mean squares.
    inner = noise**2 / (arms - 1) if arms > 1 else 0.0
    degrees = (seeds - 1) * total**2 / (between**2 + inner)
    return float(stats.t.ppf(1 - LEVEL / 2, degrees)) * math.sqrt(total / arms / seeds)
