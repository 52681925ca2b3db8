"""Two arms of a study compared task by task, by the same function as a report's arms.

So the verdict on an arm against the baseline is the report's own, and needs no correction for
other arms: its two grades have the level of forty comparisons and of one.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qkvbench.results import record
from qkvbench.results.across import item_table
from qkvbench.results.record import MetricInfo
from qkvbench.results.resampling import ItemBounds, bounds_over_items
from qkvbench.results.stats import (
    Comparison,
    Count,
    Difference,
    Tally,
    Verdict,
    beats_chance,
    count_difference,
    difference,
    verdict_of,
    verdicts,
)
from qkvbench.results.view import Cell, TaskView, View, compare_cells

PairStanding = Literal[
    "compared",
    "one seed",
    "no spread",
    "runs failed",
    "no seed in common",
    "neither learned",
    "baseline did not learn",
    "attention not needed",
]


@dataclass(frozen=True)
class Side:
    """One arm on one task: its mean score over the shared seeds, and its failed runs.

    ``learned`` is None if one seed does not decide it.
    """

    mean: float | None
    learned: bool | None
    failures: dict[int, str]
    count: Count | None = None


@dataclass(frozen=True)
class PairTask:
    """The two arms on one task: second minus first, on the seeds that both have run.

    ``detectable``, ``certain_from`` and ``provable`` are those of `Comparison`.
    """

    task: str
    metric: MetricInfo
    standing: PairStanding
    seeds: tuple[int, ...]
    first: Side
    second: Side
    margin: float | None
    verdict: Verdict | None = None
    difference: Difference | None = None
    items: ItemBounds | None = None
    detectable: float | None = None
    certain_from: float | None = None
    provable: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A cost of the first and of the second arm."""

    first: float
    second: float

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second / self.first


@dataclass(frozen=True)
class Pair:
    """Two arms over a study; costs are of the model of the study's cost task.

    ``decode_ratio`` is from interleaved rounds, with its interval; None if neither arm is the one
    that all were measured against, or if the record has no ratio.
    """

    first: str
    second: str
    tasks: tuple[PairTask, ...]
    parameters: Ratio | None
    macs: Ratio | None
    cache_bytes_per_token: Ratio | None
    decode_p50_s: Ratio | None
    decode_ratio: record.Ratio | None


def pair(view: View, first: str, second: str) -> Pair:
    """The comparison of two arms of the study."""
    costs = view.costs
    both = first in costs and second in costs
    measured = view.measurements
    times = [measured[arm].decode_p50_s if arm in measured else None for arm in (first, second)]
    cache = (
        (costs[first].cache_bytes_per_token, costs[second].cache_bytes_per_token)
        if both
        else (None, None)
    )
    return Pair(
        first=first,
        second=second,
        tasks=tuple(_with_items(task, first, second) for task in view.tasks),
        parameters=Ratio(costs[first].total_parameters, costs[second].total_parameters)
        if both
        else None,
        macs=Ratio(costs[first].macs, costs[second].macs) if both else None,
        cache_bytes_per_token=Ratio(cache[0], cache[1]) if cache[0] and cache[1] else None,
        decode_p50_s=Ratio(times[0], times[1]) if times[0] and times[1] else None,
        decode_ratio=_decode_ratio(view, first, second),
    )


def _with_items(task: TaskView, first: str, second: str) -> PairTask:
    """The two arms on one task, with the bounds over items if the records have item scores."""
    found = pair_on_task(task, first, second)
    if found.standing != "compared" or found.difference is None:
        return found
    one, other = (item_table(task.cell(arm), found.seeds) for arm in (first, second))
    if one is None or other is None or one[0].shape != other[0].shape:
        return found
    low, high = found.difference.low, found.difference.high
    seed_bounds = None if low is None or high is None else (low, high)
    (items,) = bounds_over_items((other[0] - one[0])[None], one[1], [seed_bounds])
    return replace(found, items=items)


def pair_on_task(task: TaskView, first: str, second: str) -> PairTask:
    """The two arms on one task of a study, without the bounds over items."""
    cells = (task.cell(first), task.cell(second))
    seeds = tuple(sorted(cells[0].ended_seeds & cells[1].ended_seeds))
    sides = tuple(_side(cell, seeds, task.metric) for cell in cells)
    result = PairTask(
        task=task.name,
        metric=task.metric,
        standing="no seed in common",
        seeds=seeds,
        first=sides[0],
        second=sides[1],
        margin=task.result.margin,
    )
    if not seeds:
        return result
    if task.result.standing in ("baseline did not learn", "attention not needed"):
        return replace(result, standing=task.result.standing)
    # Either may be the one without attention; the standing above is of all arms.
    compared = compare_cells(cells, task.metric, seeds, task.result.margin, floor=None)
    if {first, second} & set(compared.incomplete):
        return replace(result, standing="runs failed")
    if len(seeds) == 1:
        value = None if isinstance(compared, Tally) else _raw(cells, seeds, task.metric)
        return replace(result, standing="one seed", difference=value)
    match compared:
        case Comparison():
            # A model without attention is the better floor: what is above it was learned.
            by_floor = isinstance(task.result, Comparison) and task.result.worth is not None
            return _scores_compared(result, cells, compared, learned=by_floor)
        case Tally(counts=counts):
            sides = (
                replace(result.first, count=counts[first]),
                replace(result.second, count=counts[second]),
            )
            result = replace(result, first=sides[0], second=sides[1])
            if compared.standing != "compared":
                return _first_did_not_learn(result, cells, counts[second])
            return replace(result, standing="compared", verdict=compared.verdict(second))


def _scores_compared(
    result: PairTask, cells: tuple[Cell, Cell], compared: Comparison, *, learned: bool
) -> PairTask:
    second = cells[1].variant
    if not learned and result.first.learned is not True and result.second.learned is False:
        return replace(result, standing="neither learned")
    if compared.standing == "baseline did not learn":
        # The second arm did, or the floor says so; the difference is the same from either side.
        if result.first.mean is None or result.second.mean is None:
            return replace(result, standing="runs failed")
        value = _raw(cells, result.seeds, result.metric, result.margin)
        verdict = None if value.p is None else value.verdict(result.metric.better)
    else:
        value = compared.differences.get(second)
        verdict = verdicts(compared, result.metric.better).get(second)
    if verdict is None:
        one = 1 in (_scored(result, result.first), _scored(result, result.second))
        return replace(result, standing="one seed" if one else "no spread", difference=value)
    return replace(
        result,
        standing="compared",
        verdict=verdict,
        difference=value,
        detectable=compared.detectable,
        certain_from=compared.certain_from,
        provable=compared.provable,
    )


def _scored(result: PairTask, side: Side) -> int:
    """The number of shared seeds on which this arm has a score."""
    return len(result.seeds) - len(side.failures)


def _first_did_not_learn(result: PairTask, cells: tuple[Cell, Cell], second: Count) -> PairTask:
    """The counts of a pair of which the first did not learn: the second may have."""
    if 2 * second.solved <= second.seeds:
        return replace(result, standing="neither learned")
    base, own = (
        [math.inf if (step := cell.solved_steps[seed]) is None else step for seed in result.seeds]
        for cell in cells
    )
    count = count_difference(base, own, result.margin)
    verdict = verdict_of(count, good=count.sooner is True)
    second_side = replace(result.second, count=count)
    return replace(result, standing="compared", verdict=verdict, second=second_side)


def _raw(
    cells: tuple[Cell, Cell], seeds: Sequence[int], metric: MetricInfo, margin: float | None = None
) -> Difference:
    first, second = (
        [score for seed, score in cell.scores.items() if seed in seeds] for cell in cells
    )
    return difference(first, second, metric=metric, margin=margin)


def _decode_ratio(view: View, first: str, second: str) -> record.Ratio | None:
    """Second over first if one of them is the baseline."""
    if first == view.baseline:
        return view.decode_ratio(second)
    inverse = view.decode_ratio(first) if second == view.baseline else None
    if inverse is None:
        return None
    return inverse.model_copy(
        update={
            "to": first,
            "value": 1 / inverse.value,
            "low": inverse.high and 1 / inverse.high,
            "high": inverse.low and 1 / inverse.low,
        }
    )


def _side(cell: Cell, seeds: Sequence[int], metric: MetricInfo) -> Side:
    shared = frozenset(seeds)
    scores = [score for seed, score in cell.scores.items() if seed in shared]
    return Side(
        mean=statistics.fmean(scores) if scores else None,
        learned=beats_chance(scores, chance=metric.chance, better=metric.better)
        if scores
        else None,
        failures={run.seed: run.status for run in cell.failures if run.seed in seeds},
    )
