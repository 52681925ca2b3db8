"""Two arms of a study compared task by task.

The pair is assumed to be chosen before the data were seen, so intervals hold for this pair alone;
p values and verdicts are adjusted by Holm over the tasks, which are the family.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qkvbench.results import record
from qkvbench.results.across import item_table
from qkvbench.results.critical import LEVEL, holm
from qkvbench.results.layout import detectable_difference, provable_margin
from qkvbench.results.record import MetricInfo
from qkvbench.results.resampling import ItemBounds, bounds_over_items
from qkvbench.results.stats import (
    POWER,
    Count,
    Difference,
    Verdict,
    beats_chance,
    compare,
    tally,
)
from qkvbench.results.view import Cell, TaskView, View

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

    ``learned`` is None if one seed does not decide it. ``threshold_step`` is the median step at
    which the seeds that solved the task reached its threshold.
    """

    mean: float | None
    learned: bool | None
    failures: dict[int, str]
    count: Count | None = None
    threshold_step: float | None = None


@dataclass(frozen=True)
class PairTask:
    """The two arms on one task: second minus first, paired by seed.

    The p values of the difference are adjusted for the tasks, ``low`` and ``high`` are not.
    ``detectable`` and ``provable`` are for this pair alone, at 80% power; ``lowest`` is the largest
    count of solved seeds that differs significantly from the first arm's.
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
    provable: float | None = None
    lowest: int | None = None


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
    tasks = _adjust_for_tasks([_compare_on_task(task, first, second) for task in view.tasks])
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
        tasks=tasks,
        parameters=Ratio(costs[first].total_parameters, costs[second].total_parameters)
        if both
        else None,
        macs=Ratio(costs[first].macs, costs[second].macs) if both else None,
        cache_bytes_per_token=Ratio(cache[0], cache[1]) if cache[0] and cache[1] else None,
        decode_p50_s=Ratio(times[0], times[1]) if times[0] and times[1] else None,
        decode_ratio=_decode_ratio(view, first, second),
    )


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


def _compare_on_task(task: TaskView, first: str, second: str) -> PairTask:
    cells = (task.cell(first), task.cell(second))
    ended = [{run.seed for run in cell.runs if run.status != "interrupted"} for cell in cells]
    seeds = tuple(sorted(ended[0] & ended[1]))
    margin, better = task.result.margin, task.metric.better
    chance = task.metric.chance
    sides = tuple(_side(cell, seeds, task.metric) for cell in cells)
    result = PairTask(
        task=task.name,
        metric=task.metric,
        standing="no seed in common",
        seeds=seeds,
        first=sides[0],
        second=sides[1],
        margin=margin,
    )
    if not seeds:
        return result
    if task.result.standing in ("baseline did not learn", "attention not needed"):
        return replace(result, standing=task.result.standing)
    scores = {cell.variant: _scores_on(cell, seeds) for cell in cells}
    if task.metric.solved is not None:
        return _compare_counts(result, cells, scores, task.metric.solved)
    if any(side.failures for side in sides):
        return replace(result, standing="runs failed")
    if sides[0].learned is False and sides[1].learned is False:
        return replace(result, standing="neither learned")
    # `compare` needs a baseline that learned; if only the second arm did, swap and negate.
    base, other = (first, second) if sides[0].learned is not False else (second, first)
    comparison = compare(
        scores, baseline=base, seeds=seeds, chance=chance, better=better, margin=margin
    )
    difference = comparison.differences.get(other)
    if difference is None:
        return replace(result, standing="runs failed")
    difference = difference if base == first else _negated(difference)
    if comparison.standing == "one seed" or comparison.standing == "no spread":
        return replace(result, standing=comparison.standing, difference=difference)
    deviation = comparison.deviation or 0.0
    size = {"arms": 2, "seeds": len(seeds), "power": POWER}
    return replace(
        result,
        standing="compared",
        difference=difference,
        items=_items(cells, seeds, difference),
        detectable=deviation * detectable_difference(**size),
        provable=deviation * provable_margin(**size),
    )


def _compare_counts(
    result: PairTask, cells: tuple[Cell, Cell], scores: dict[str, dict[int, float]], solved: float
) -> PairTask:
    """Counts of solved seeds compared; a run that diverged has not solved the task."""
    ended = [set(scores[cell.variant]) | set(cell.diverged) for cell in cells]
    if any(not set(result.seeds) <= each for each in ended):
        return replace(result, standing="runs failed")
    counts = {
        base.variant: tally(
            scores,
            baseline=base.variant,
            seeds=result.seeds,
            solved=solved,
            better=result.metric.better,
            margin=result.margin,
            diverged={
                cell.variant: [seed for seed in cell.diverged if seed in result.seeds]
                for cell in cells
            },
        )
        for base in cells
    }
    first, second = cells[0].variant, cells[1].variant
    usable = [counts[arm] for arm in (first, second) if counts[arm].standing == "compared"]
    by_arm = counts[first].counts
    sides = {
        "first": replace(result.first, count=by_arm.get(first)),
        "second": replace(result.second, count=by_arm.get(second)),
    }
    if not usable:
        one = len(result.seeds) == 1
        return replace(result, standing="one seed" if one else "neither learned", **sides)
    if counts[first].standing == "compared":
        lowest = counts[first].lowest
        return replace(result, standing="compared", lowest=lowest, **sides)
    # Only the second learned, so it was the baseline of the same two-sided tests.
    swapped = counts[second].counts[first]
    count = replace(by_arm[second], p=swapped.p, match_p=swapped.match_p)
    sides["second"] = replace(result.second, count=count)
    return replace(result, standing="compared", **sides)


def _adjust_for_tasks(tasks: Sequence[PairTask]) -> tuple[PairTask, ...]:
    """The tasks with p values adjusted by Holm over them, and the resulting verdicts."""
    fields = ("p", "match_p", "not_worse_p")
    adjusted = {
        field: holm(
            {
                each.task: value
                for each in tasks
                if (value := getattr(_tested_value(each), field, None)) is not None
            }
        )
        for field in fields
    }
    return tuple(
        _with_verdict(each, {name: adjusted[name].get(each.task) for name in fields})
        for each in tasks
    )


def _tested_value(task: PairTask) -> Difference | Count | None:
    if task.standing != "compared":
        return None
    return task.difference or task.second.count


def _with_verdict(task: PairTask, p: Mapping[str, float | None]) -> PairTask:
    if task.standing != "compared":
        return task
    if task.difference is not None:
        value = task.difference.value
        good = (value > 0) == (task.metric.better == "higher")
        task = replace(task, difference=replace(task.difference, **p))
    else:
        assert task.first.count is not None
        assert task.second.count is not None
        good = task.second.count.solved > task.first.count.solved
        task = replace(task, second=replace(task.second, count=replace(task.second.count, **p)))
    return replace(task, verdict=_verdict(p, good=good))


def _verdict(p: Mapping[str, float | None], *, good: bool) -> Verdict:
    def significant(name: str) -> bool:
        value = p[name]
        return value is not None and value < LEVEL

    if significant("p"):
        return "better" if good else "worse"
    if significant("match_p"):
        return "matches"
    return "not worse" if significant("not_worse_p") else "not distinguishable"


def _side(cell: Cell, seeds: Sequence[int], metric: MetricInfo) -> Side:
    scores = list(_scores_on(cell, seeds).values())
    steps = [
        run.solved_step for run in cell.solved if run.seed in seeds and run.solved_step is not None
    ]
    return Side(
        mean=statistics.fmean(scores) if scores else None,
        learned=beats_chance(scores, chance=metric.chance, better=metric.better)
        if scores
        else None,
        failures={run.seed: run.status for run in cell.failures if run.seed in seeds},
        threshold_step=statistics.median(steps) if steps else None,
    )


def _scores_on(cell: Cell, seeds: Sequence[int]) -> dict[int, float]:
    return {seed: score for seed, score in cell.scores.items() if seed in seeds}


def _negated(difference: Difference) -> Difference:
    low, high = difference.low, difference.high
    return replace(
        difference,
        value=-difference.value,
        low=None if high is None else -high,
        high=None if low is None else -low,
        # Non-inferiority is one-sided and was tested on the other side.
        not_worse_p=None,
    )


def _items(
    cells: tuple[Cell, Cell], seeds: Sequence[int], difference: Difference
) -> ItemBounds | None:
    first, second = (item_table(cell, seeds) for cell in cells)
    if first is None or second is None or first[0].shape != second[0].shape:
        return None
    low, high = difference.low, difference.high
    bounds = None if low is None or high is None else (low, high)
    return bounds_over_items((second[0] - first[0])[None], first[1], [bounds])[0]
