"""Pareto dominance between arms: on exact numbers, and on scores with uncertainty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qkvbench.results.critical import LEVEL, boschloo
from qkvbench.results.layout import differences
from qkvbench.results.stats import Better, Comparison, Scores, Tally, residual_deviation

# "likely dominated" needs this one-sided level for one pair; "dominated" needs 5% over all rivals.
LIKELY_LEVEL = 0.10
# Two measurements of the same arm differ by up to this ratio, so smaller gains do not count.
LATENCY_TOLERANCE = 0.03

ParetoStatus = Literal["dominated", "likely dominated", "not decided", "on the frontier"]


@dataclass(frozen=True)
class Rival:
    """Another arm's quality compared with that of one arm.

    ``p`` is two-sided and adjusted for all rivals of that arm; ``one_sided_p``, unadjusted, tests
    that the rival is no better.
    """

    better: bool
    p: float
    one_sided_p: float


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
    tolerance. *Dominated*: such a rival is better, at 5% over all rivals of the arm. *On the
    frontier*: every such rival is worse at 5%, or there is none.
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
    scores: Scores, result: Comparison | Tally, better: Better
) -> dict[str, dict[str, Rival]]:
    """Every complete arm against every other complete arm; empty if nothing is compared."""
    if result.standing != "compared":
        return {}
    arms = [arm for arm in scores if arm not in result.incomplete]
    match result:
        case Comparison(seeds=seeds):
            rows = {arm: [scores[arm][seed] for seed in seeds] for arm in arms}
            return {arm: _rivals_by_score(rows, arm, better) for arm in arms}
        case Tally(counts=counts, seeds=seeds):
            solved = {arm: counts[arm].solved for arm in arms}
            return {arm: _rivals_by_count(solved, arm, len(seeds)) for arm in arms}


def _rivals_by_score(
    rows: Mapping[str, Sequence[float]], arm: str, better: Better
) -> dict[str, Rival]:
    others = [other for other in rows if other != arm]
    table = np.array([rows[arm], *(rows[other] for other in others)])
    if not others or residual_deviation(table) == 0:
        return {}
    layout = differences(table[None])
    sign = 1 if better == "higher" else -1
    values = layout.value[0].tolist()
    one_sided_p = (layout if sign > 0 else layout.negated).above_p(0.0)[0].tolist()
    return {
        other: Rival(sign * values[i] > 0, p, one_sided_p[i])
        for i, (other, p) in enumerate(zip(others, layout.p(), strict=True))
    }


def _rivals_by_count(solved: Mapping[str, int], arm: str, seeds: int) -> dict[str, Rival]:
    others = [other for other in solved if other != arm]
    rivals_by_arm: dict[str, Rival] = {}
    for other in others:
        p = boschloo(solved[other], solved[arm], seeds=seeds)
        better = solved[other] > solved[arm]
        one_sided_p = p / 2 if better else 1.0
        rivals_by_arm[other] = Rival(better, min(1.0, p * len(others)), one_sided_p)
    return rivals_by_arm


def _pareto_place(all_rivals: Mapping[str, Rival], cheaper: Sequence[str]) -> ParetoPlace:
    if not cheaper:
        return ParetoPlace("on the frontier", None)
    tested = {name: all_rivals[name] for name in cheaper if name in all_rivals}
    if not tested:
        return ParetoPlace("not decided", cheaper[0])
    strongest = min(tested, key=lambda name: tested[name].one_sided_p)
    rival = tested[strongest]
    if rival.better and rival.p < LEVEL:
        return ParetoPlace("dominated", strongest)
    if rival.one_sided_p < LIKELY_LEVEL:
        return ParetoPlace("likely dominated", strongest)
    worse = all(not each.better and each.p < LEVEL for each in tested.values())
    on_frontier = worse and len(tested) == len(cheaper)
    return ParetoPlace("on the frontier" if on_frontier else "not decided", strongest)
