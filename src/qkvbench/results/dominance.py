"""Which arms another makes needless, no dearer and better: on given numbers, and on intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qkvbench.results.critical import LEVEL, boschloo
from qkvbench.results.layout import differences
from qkvbench.results.stats import Better, Comparison, Scores, Tally, residual_deviation

# "likely" asks for this much of one pair alone; what is certain holds at 5% for all rivals.
LIKELY = 0.10
# Two copies of one arm are measured within this of each other, so a smaller gain is none.
SAME_LATENCY = 0.03

Outlook = Literal["dominated", "likely dominated", "not decided", "on the frontier"]


@dataclass(frozen=True)
class Rival:
    """How another arm's quality compares with one arm's.

    ``p`` is two-sided and holds for all rivals of that arm together; ``alone`` is the one-sided p,
    of this pair alone, that the rival is no better.
    """

    better: bool
    p: float
    alone: float


@dataclass(frozen=True)
class Place:
    """What is known of one arm, and the rival that says so; None where no other is no dearer."""

    outlook: Outlook
    by: str | None


# For each arm its rivals; an arm that is not compared has no entry.
Rivals = Mapping[str, Mapping[str, Rival]]


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the first is nowhere larger and somewhere smaller; less is better in each place."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def frontier(points: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The points that none dominates, in their order; numbers are taken as exact."""
    return tuple(
        name
        for name, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    )


def outlooks(costs: Mapping[str, float], rivals: Rivals, *, same: float = 0.0) -> dict[str, Place]:
    """Each arm's place on (quality, cost), where quality is known up to its noise.

    An arm is no dearer if it costs at most as much, or less by the share `same` where costs are
    observed. *Dominated*: a rival that is no dearer is better, at 5% for all the arm's rivals.
    *On the frontier*: every rival that is no dearer is worse, as surely, or there is none.
    """
    return {
        arm: _place(
            rivals[arm],
            [name for name in costs if name != arm and costs[name] <= costs[arm] * (1 - same)],
        )
        for arm in costs
        if arm in rivals
    }


def rivals(
    scores: Scores, result: Comparison | Tally, better: Better
) -> dict[str, dict[str, Rival]]:
    """Every complete arm beside each other complete one; none where nothing is compared."""
    if result.standing != "compared":
        return {}
    arms = [arm for arm in scores if arm not in result.incomplete]
    match result:
        case Comparison(seeds=seeds):
            rows = {arm: [scores[arm][seed] for seed in seeds] for arm in arms}
            return {arm: _scored(rows, arm, better) for arm in arms}
        case Tally(counts=counts, seeds=seeds):
            solved = {arm: counts[arm].solved for arm in arms}
            return {arm: _counted(solved, arm, len(seeds)) for arm in arms}


def _scored(rows: Mapping[str, Sequence[float]], arm: str, better: Better) -> dict[str, Rival]:
    others = [other for other in rows if other != arm]
    table = np.array([rows[arm], *(rows[other] for other in others)])
    if not others or residual_deviation(table) == 0:
        return {}
    found = differences(table[None])
    good = 1 if better == "higher" else -1
    values = found.value[0].tolist()
    alone = (found if good > 0 else found.mirrored).above_p(0.0)[0].tolist()
    return {
        other: Rival(good * values[i] > 0, p, alone[i])
        for i, (other, p) in enumerate(zip(others, found.p(), strict=True))
    }


def _counted(solved: Mapping[str, int], arm: str, seeds: int) -> dict[str, Rival]:
    others = [other for other in solved if other != arm]
    found: dict[str, Rival] = {}
    for other in others:
        p = boschloo(solved[other], solved[arm], seeds=seeds)
        better = solved[other] > solved[arm]
        alone = p / 2 if better else 1.0
        found[other] = Rival(better, min(1.0, p * len(others)), alone)
    return found


def _place(known: Mapping[str, Rival], cheaper: Sequence[str]) -> Place:
    if not cheaper:
        return Place("on the frontier", None)
    tested = {name: known[name] for name in cheaper if name in known}
    if not tested:
        return Place("not decided", cheaper[0])
    strongest = min(tested, key=lambda name: tested[name].alone)
    rival = tested[strongest]
    if rival.better and rival.p < LEVEL:
        return Place("dominated", strongest)
    if rival.alone < LIKELY:
        return Place("likely dominated", strongest)
    worse = all(not each.better and each.p < LEVEL for each in tested.values())
    sure = worse and len(tested) == len(cheaper)
    return Place("on the frontier" if sure else "not decided", strongest)
