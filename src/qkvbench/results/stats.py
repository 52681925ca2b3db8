"""The comparison of each arm with a baseline, and the verdict on it.

A verdict is on one arm and one baseline: it is computed from their scores alone (`welch`,
`log_rank`), so it is the same in every study that has these runs. It comes in two grades. At the
level `CERTAIN` about one study in twenty with forty comparisons of equal arms errs at most; at
`LEVEL` one comparison of twenty does, and the verdict is called likely.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal, get_args

import numpy as np
from scipy import special

from qkvbench.results.critical import LEVEL, clopper_pearson, not_lower_p
from qkvbench.results.log_rank import log_rank
from qkvbench.results.record import MetricInfo
from qkvbench.results.welch import (
    Unit,
    detectable_difference,
    mean_bounds,
    provable_margin,
    unit_of,
    welch,
)

# So many comparisons of equal arms have a false verdict in about 5 of 100 studies at most.
COMPARISONS = 40
# By Bonferroni, and half of that: if noises differ five times, Welch's test errs so far out up to
# twice as often as it says (benchmarks/error_rates.py).
CERTAIN = LEVEL / COMPARISONS / 2
# A baseline learned if its seeds beat chance in a one-sided t test at this level.
CHANCE_LEVEL = 0.05
POWER = 0.80

Better = Literal["higher", "lower"]
Scores = Mapping[str, Mapping[int, float]]
# The step at which each seed solved the task; None if it did not.
SolvedSteps = Mapping[str, Mapping[int, float | None]]

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

# "not worse" is non-inferiority: a loss of the margin is excluded, a gain is not. "diverged": more
# of the arm's runs than of the baseline's had no finite loss.
Verdict = Literal[
    "diverged",
    "worse",
    "likely worse",
    "better",
    "likely better",
    "matches",
    "likely matches",
    "not worse",
    "likely not worse",
    "not distinguishable",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# The verdicts of an arm that loses, for certain and likely.
LOSSES: tuple[Verdict, ...] = ("diverged", "worse")
# The verdicts of an arm that differs, which have a size.
WITH_SIZE: tuple[Verdict, ...] = ("worse", "likely worse", "better", "likely better")


@dataclass(frozen=True)
class Estimate:
    """An arm's mean over its seeds and their standard deviation (None for one seed).

    ``low`` and ``high`` bound the mean at 95%, from these seeds alone; None without spread.
    """

    value: float
    deviation: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """An arm's mean minus the baseline's.

    ``low`` and ``high`` are the 95% bounds for this arm alone, ``p`` is the corresponding p value.
    ``certain`` are bounds at the level `CERTAIN`.
    ``match_p`` is of the two one-sided tests for a difference within the margin, ``not_worse_p`` of
    the one on the bad side. All are None if there is one seed or no spread, the last two without a
    margin; ``p`` is exact, by permutation, if neither arm varies and they differ.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    match_p: float | None = None
    not_worse_p: float | None = None
    certain: tuple[float, float] | None = None

    def verdict(self, better: Better) -> Verdict:
        """The verdict on the arm."""
        good = (self.value > 0) == (better == "higher")
        return verdict_of(self, good=good)

    @property
    def clear(self) -> bool:
        """Whether the 95% interval excludes zero."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class Comparison:
    """The arms of one task compared with their baseline.

    ``diverged`` counts the runs of an arm that had no finite loss, and are in no mean, of all that
    ``ended``.

    ``worth`` is what the baseline gains over the control without attention, positive if attention
    helps; None if the study has no such control. If it is below `WORTH` times ``detectable``,
    nothing is compared.

    ``detectable`` is the loss that is found as likely, with 80% power, in an arm that varies as the
    baseline does; ``certain_from`` the one that is found for certain. ``provable`` is the margin
    within which such an arm, if equal, is shown to match likely. All in the metric's unit.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    means: dict[str, Estimate]
    differences: dict[str, Difference]
    incomplete: tuple[str, ...]
    diverged: dict[str, int]
    margin: float | None = None
    detectable: float | None = None
    certain_from: float | None = None
    provable: float | None = None
    worth: float | None = None
    ended: dict[str, int] = field(default_factory=dict)

    def lost(self, arm: str) -> float:
        """The share of the arm's runs that diverged."""
        return self.diverged.get(arm, 0) / max(1, self.ended.get(arm, 0))


@dataclass(frozen=True)
class Count:
    """Seeds that solved the task, out of those that ended; exact 95% bounds on the proportion.

    ``step`` is the median step at which they did, where a seed that did not counts as later than
    all; None if that is the median. ``sooner`` says whether the arm's seeds solved it sooner than
    the baseline's, and ``p`` compares the two by the log-rank test. ``match_p`` and ``not_worse_p``
    are of the tests of a proportion within the margin. None if nothing is compared.
    """

    solved: int
    seeds: int
    low: float
    high: float
    step: float | None
    sooner: bool | None = None
    p: float | None = None
    match_p: float | None = None
    not_worse_p: float | None = None


@dataclass(frozen=True)
class Tally:
    """The arms of a task that a run either solves or does not, by the step at which it does.

    ``margin`` is a proportion of seeds.
    """

    standing: Standing
    baseline: str
    seeds: tuple[int, ...]
    counts: dict[str, Count]
    incomplete: tuple[str, ...]
    margin: float | None = None

    def verdict(self, arm: str) -> Verdict | None:
        """The verdict on an arm; None for the baseline, or if nothing is compared."""
        count = self.counts.get(arm)
        if count is None or count.p is None:
            return None
        return verdict_of(count, good=count.sooner is True)


def verdict_of(tested: Difference | Count, *, good: bool) -> Verdict:
    """The verdict of p values: what is certain before what is likely, a loss before a match."""
    sides: tuple[Verdict, Verdict] = (
        ("better", "likely better") if good else ("worse", "likely worse")
    )
    ranked: list[tuple[float | None, float, Verdict]] = [
        (tested.p, CERTAIN, sides[0]),
        (tested.match_p, CERTAIN, "matches"),
        (tested.p, LEVEL, sides[1]),
        (tested.not_worse_p, CERTAIN, "not worse"),
        (tested.match_p, LEVEL, "likely matches"),
        (tested.not_worse_p, LEVEL, "likely not worse"),
    ]
    for p, level, verdict in ranked:
        if p is not None and p < level:
            return verdict
    return "not distinguishable"


def verdicts(result: Comparison | Tally, better: Better) -> dict[str, Verdict]:
    """The verdict on each arm that is compared."""
    if result.standing != "compared":
        return {}
    match result:
        case Comparison(differences=by_arm, incomplete=incomplete):
            allowed = result.lost(result.baseline)
            failed = [
                arm
                for arm in result.diverged
                if result.lost(arm) > allowed and arm not in incomplete
            ]
            # Without a p value nothing is said of an arm, whichever others there are.
            found: dict[str, Verdict] = {
                arm: each.verdict(better) for arm, each in by_arm.items() if each.p is not None
            }
            for arm in failed:
                found[arm] = "diverged"
            return found
        case Tally(counts=counts):
            return {arm: verdict for arm in counts if (verdict := result.verdict(arm)) is not None}


def difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    metric: MetricInfo,
    margin: float | None = None,
) -> Difference:
    """The second arm's scores against the first's, from these two alone.

    For proportions all is computed on logits, and the value and its bounds are those of the second
    arm's proportion minus the first's. If the means differ the other way than the logits, neither
    arm is called the better one. A margin is laid off from either arm's proportion, and the larger
    p value of the two counts: the logits of a margin are longest near 0 and 1.
    """
    unit = unit_of(metric.unit)
    if min(len(first), len(second)) < 2:
        return Difference(float(np.mean(second) - np.mean(first)))
    found = welch(first, second, unit)
    arm, base = unit.restored(found.base + found.value), unit.restored(found.base)
    result = Difference(arm - base)
    if found.error == 0:
        return replace(result, p=_permuted_p(first, second) if found.value else None)
    low, high = found.bounds(LEVEL, unit)
    opposite = found.value * (float(np.mean(second)) - float(np.mean(first))) < 0
    result = replace(
        result,
        low=low,
        high=high,
        p=1.0 if opposite else found.p,
        certain=found.bounds(CERTAIN, unit),
    )
    if margin is None:
        return result
    # A difference of the margin, from the baseline's proportion and from the arm's.
    lost, gained = (
        (
            analysed_bound(unit, base + side * margin) - found.base,
            found.base + found.value - analysed_bound(unit, arm - side * margin),
        )
        for side in (-1, 1)
    )
    above = max(found.above_p(bound) for bound in lost)
    below = max(found.below_p(bound) for bound in gained)
    not_worse = above if metric.better == "higher" else below
    return replace(result, match_p=max(above, below), not_worse_p=not_worse)


def _permuted_p(first: Sequence[float], second: Sequence[float]) -> float:
    """The p value of two samples of which all of one are above all of the other."""
    return min(1.0, 2 / math.comb(len(first) + len(second), len(first)))


def compare(
    scores: Scores,
    *,
    baseline: str,
    seeds: Sequence[int],
    metric: MetricInfo,
    margin: float | None = None,
    diverged: Mapping[str, Sequence[int]] | None = None,
    floor: str | None = None,
) -> Comparison:
    """Each complete arm against the baseline; ``floor`` is the arm without attention, if any.

    A seed that `diverged` has no score; an arm of which more seeds did than of the baseline has
    that as its verdict, and the difference of the others. An arm that lacks a seed for another
    reason is incomplete: it has a mean, but is not compared, so that no arm gains by losing a run.
    """
    lost = {arm: tuple(each) for arm, each in (diverged or {}).items() if each}
    complete = [
        arm
        for arm in scores
        if all(seed in scores[arm] or seed in lost.get(arm, ()) for seed in seeds)
    ]
    unit = unit_of(metric.unit)
    values = {arm: list(scores[arm].values()) for arm in scores}
    result = Comparison(
        standing="baseline incomplete",
        baseline=baseline,
        seeds=tuple(seeds),
        means={arm: _estimate(tuple(each), unit) for arm, each in values.items() if each},
        differences={},
        incomplete=tuple(arm for arm in scores if arm not in complete),
        diverged={arm: len(each) for arm, each in lost.items()},
        ended={arm: len(each) + len(lost.get(arm, ())) for arm, each in values.items()},
        margin=margin,
    )
    if baseline not in complete:
        return result
    base = values[baseline]
    if not base:
        return replace(result, standing="baseline did not learn")
    worth = None
    # One run of the floor would not tell whether it is one.
    if floor in complete and floor != baseline and len(values[floor]) > 1:
        worth = result.means[baseline].value - result.means[floor].value
        worth = worth if metric.better == "higher" else -worth
        result = replace(result, worth=worth)
    # What a model without attention reaches is learned without it, so it is the better floor.
    learned = beats_chance(base, chance=metric.chance, better=metric.better)
    if worth is None and learned is False:
        return replace(result, standing="baseline did not learn")
    others = [arm for arm in complete if arm != baseline]
    if not others:
        return replace(result, standing="one arm")
    found = {
        arm: difference(base, values[arm], metric=metric, margin=margin)
        for arm in others
        if values[arm]
    }
    result = replace(result, differences=found)
    if len(base) == 1:
        return replace(result, standing="one seed")
    # By exact permutation even arms that do not vary have a p value, if they differ.
    if all(each.p is None for each in found.values()) and not result.diverged:
        one = all(len(values[arm]) == 1 for arm in found)
        return replace(result, standing="one seed" if one else "no spread")
    result = _with_sensitivity(result, base, metric)
    if worth is not None and worth <= WORTH * (result.detectable or 0.0):
        return replace(result, standing="attention not needed", differences={})
    return replace(result, standing="compared")


def tally(
    steps: SolvedSteps,
    *,
    baseline: str,
    seeds: Sequence[int],
    margin: float | None = None,
    floor: str | None = None,
) -> Tally:
    """How soon the seeds of each arm solved the task, against the baseline's: the log-rank test.

    A seed without a step has not solved it within the budget, by divergence or otherwise; one that
    is not in `steps` makes its arm incomplete. The baseline learned if it solved more than half of
    its seeds, and needs attention if the ``floor``, an arm without it, is slower or solves fewer
    (at `LEVEL`).
    """
    complete = [arm for arm in steps if all(seed in steps[arm] for seed in seeds)]
    times = {arm: [math.inf if t is None else t for t in steps[arm].values()] for arm in steps}
    counts = {arm: _count(each) for arm, each in times.items() if each}
    result = Tally(
        standing="baseline incomplete",
        baseline=baseline,
        seeds=tuple(seeds),
        counts=counts,
        incomplete=tuple(arm for arm in steps if arm not in complete),
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
    if base.seeds == 1:
        return replace(result, standing="one seed")
    tested = {arm: count_difference(times[baseline], times[arm], margin) for arm in others}
    if floor in tested and floor != baseline:
        without = tested[floor]
        if without.sooner or without.p is None or without.p >= LEVEL:
            return replace(result, standing="attention not needed")
    return replace(result, standing="compared", counts=counts | tested)


def count_difference(
    first: Sequence[float], second: Sequence[float], margin: float | None = None
) -> Count:
    """The second arm's count, compared with the first's; a step is infinite if not solved."""
    base, count = _count(first), _count(second)
    later, p = log_rank(tuple(first), tuple(second))
    result = replace(count, sooner=later < 0, p=p)
    if margin is None or base.seeds != count.seeds:
        return result
    not_lower = partial(not_lower_p, seeds=base.seeds, margin=margin)
    not_worse = not_lower(count.solved, base.solved)
    match_p = max(not_worse, not_lower(base.solved, count.solved))
    return replace(result, match_p=match_p, not_worse_p=not_worse)


def reaches(score: float, threshold: float, *, better: Better) -> bool:
    """Whether a score is at the threshold or on its good side."""
    return score >= threshold if better == "higher" else score <= threshold


def beats_chance(scores: Sequence[float], *, chance: float, better: Better) -> bool | None:
    """Whether the scores are significantly above chance; None for one score that is above it."""
    return _beats_chance(tuple(scores), chance, better)


@lru_cache(maxsize=8192)
def _beats_chance(scores: tuple[float, ...], chance: float, better: Better) -> bool | None:
    gains = np.array(scores) - chance
    if better == "lower":
        gains = -gains
    mean = float(gains.mean())
    if mean <= 0:
        return False
    if len(scores) == 1:
        return None
    error = float(gains.std(ddof=1)) / math.sqrt(len(scores))
    return error == 0 or float(special.stdtr(len(scores) - 1, -mean / error)) < CHANCE_LEVEL


def sensitivity(base: Sequence[float], *, metric: MetricInfo) -> tuple[float, float, float] | None:
    """The sensitivity of such seeds: the fields ``detectable``, ``certain_from`` and ``provable``.

    For an arm that varies as these scores do, and has as many; None without spread.
    """
    return _sensitivity(tuple(base), unit_of(metric.unit), metric.better)


@lru_cache(maxsize=8192)
def _sensitivity(
    base: tuple[float, ...], unit: Unit, better: Better
) -> tuple[float, float, float] | None:
    values = unit.analysed(base)
    deviation, mean = float(values.std(ddof=1)), float(values.mean())
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return None
    # Rounded to three digits, so that the quadrature of one deviation serves for all of its size.
    deviation = float(f"{deviation:.3g}")
    sign = -1 if better == "higher" else 1

    def loss(size: Callable[..., float], level: float) -> float:
        shift = size(deviation, seeds=len(base), level=level, power=POWER)
        return abs(unit.restored(mean + sign * shift) - unit.restored(mean))

    return (
        loss(detectable_difference, LEVEL),
        loss(detectable_difference, CERTAIN),
        loss(provable_margin, LEVEL),
    )


def _with_sensitivity(result: Comparison, base: Sequence[float], metric: MetricInfo) -> Comparison:
    found = sensitivity(base, metric=metric)
    if found is None:
        return result
    detectable, certain_from, provable = found
    return replace(result, detectable=detectable, certain_from=certain_from, provable=provable)


def analysed_bound(unit: Unit, bound: float) -> float:
    """A bound on the scale of analysis; infinite if no proportion can be beyond it."""
    if unit.logit and not 0 < bound < 1:
        return math.inf if bound >= 1 else -math.inf
    return float(unit.analysed([bound])[0])


@lru_cache(maxsize=8192)
def _estimate(scores: tuple[float, ...], unit: Unit) -> Estimate:
    """The mean of an arm; cached, because an arm is compared with each of the others."""
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    low, high = mean_bounds(scores, unit) or (None, None)
    return Estimate(float(np.mean(scores)), deviation, low, high)


def _count(times: Sequence[float]) -> Count:
    solved = sum(math.isfinite(each) for each in times)
    median = statistics.median_low(sorted(times))
    step = median if math.isfinite(median) else None
    return Count(solved, len(times), *clopper_pearson(solved, len(times)), step)
