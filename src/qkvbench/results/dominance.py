"""Pareto dominance between arms: on exact numbers, and on scores with uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench.results.critical import LEVEL
from qkvbench.results.record import MetricInfo
from qkvbench.results.stats import (
    CERTAIN,
    Comparison,
    Scores,
    SolvedSteps,
    Tally,
    count_difference,
    difference,
)

# Two measurements of the same arm differ by up to this ratio, so smaller gains do not count.
LATENCY_TOLERANCE = 0.03

ParetoStatus = Literal["dominated", "likely dominated", "not decided", "on the frontier"]


@dataclass(frozen=True)
class Rival:
    """Another arm's quality compared with that of one arm; ``p`` is two-sided, of this pair."""

    better: bool
    p: float


@dataclass(frozen=True)
class ParetoPlace:
    """The status of one arm, and the rival that decides it; None if every other arm costs more."""

    outlook: ParetoStatus
    by: str | None


# The rivals of each arm; an arm that is not compared has no entry.
Rivals = Mapping[str, Mapping[str, Rival]]


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the first is nowhere larger and somewhere smaller; lower is better everywhere."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def frontier(points: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The points that no other point dominates, in their order; numbers are taken as exact."""
    return tuple(
        name
        for name, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    )


def pareto_places(
    costs: Mapping[str, float], rivals: Rivals, *, tolerance: float = 0.0
) -> dict[str, ParetoPlace]:
    """The Pareto status of each arm on (quality, cost), with uncertain quality.

    A rival counts if it costs at most (1 − tolerance) times as much; measured costs need some
    tolerance. *Dominated*: such a rival is better for certain, *likely dominated*: likely. *On the
    frontier*: every such rival is at least likely worse, or there is none.
    """
    return {
        arm: _pareto_place(
            rivals[arm],
            [name for name in costs if name != arm and costs[name] <= costs[arm] * (1 - tolerance)],
        )
        for arm in costs
        if arm in rivals
    }


def rivals(
    scores: Scores, steps: SolvedSteps, result: Comparison | Tally, metric: MetricInfo
) -> dict[str, dict[str, Rival]]:
    """Every complete arm against every other complete arm; empty if nothing is compared."""
    if result.standing != "compared":
        return {}
    arms = [arm for arm in scores if arm not in result.incomplete]
    match result:
        case Comparison(diverged=diverged):
            # An arm that lost runs has no score that could count for it.
            rows = {arm: list(scores[arm].values()) for arm in arms if arm not in diverged}
            return {
                arm: {
                    other: rival
                    for other in rows
                    if other != arm
                    if (rival := _rival_by_score(rows[arm], rows[other], metric)) is not None
                }
                for arm in rows
            }
        case Tally():
            times = {
                arm: [math.inf if step is None else step for step in steps[arm].values()]
                for arm in arms
            }
            return {
                arm: {
                    other: _rival_by_count(times[arm], times[other])
                    for other in arms
                    if other != arm
                }
                for arm in arms
            }


def _rival_by_score(
    own: Sequence[float], other: Sequence[float], metric: MetricInfo
) -> Rival | None:
    found = difference(own, other, metric=metric)
    if found.p is None:
        return None
    return Rival((found.value > 0) == (metric.better == "higher"), found.p)


def _rival_by_count(own: Sequence[float], other: Sequence[float]) -> Rival:
    found = count_difference(own, other)
    return Rival(found.sooner is True, 1.0 if found.p is None else found.p)


def _pareto_place(all_rivals: Mapping[str, Rival], cheaper: Sequence[str]) -> ParetoPlace:
    if not cheaper:
        return ParetoPlace("on the frontier", None)
    tested = {name: all_rivals[name] for name in cheaper if name in all_rivals}
    if not tested:
        return ParetoPlace("not decided", cheaper[0])
    strongest = min(tested, key=lambda name: (not tested[name].better, tested[name].p))
    rival = tested[strongest]
    if rival.better and rival.p < LEVEL:
        return ParetoPlace("dominated" if rival.p < CERTAIN else "likely dominated", strongest)
    worse = all(not each.better and each.p < LEVEL for each in tested.values())
    on_frontier = worse and len(tested) == len(cheaper)
    return ParetoPlace("on the frontier" if on_frontier else "not decided", strongest)
