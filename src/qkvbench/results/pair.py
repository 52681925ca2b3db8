"""Two arms of a study beside each other, task by task, from its view.

The pair is taken as named before the study was looked at, so intervals hold for it alone; p values
and verdicts are Holm's over the tasks, which are the family.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qkvbench.results import record
from qkvbench.results.across import item_table, pair_on_scale
from qkvbench.results.aggregate import Aggregate, aggregate
from qkvbench.results.critical import LEVEL, holm
from qkvbench.results.layout import detectable, provable
from qkvbench.results.record import MetricInfo
from qkvbench.results.resampling import OverItems, over_items
from qkvbench.results.stats import (
    POWER,
    Comparison,
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
]


@dataclass(frozen=True)
class Side:
    """One arm on one task: its mean score over the shared seeds, and what did not end in one.

    ``learned`` is None where one seed cannot tell. ``threshold_step`` is the median step at which
    the seeds that solved the task reached its threshold.
    """

    mean: float | None
    learned: bool | None
    failures: dict[int, str]
    count: Count | None = None
    threshold_step: float | None = None


@dataclass(frozen=True)
class PairTask:
    """The two arms on one task: second minus first, paired by seed.

    ``p`` and the difference's other p values are adjusted for the tasks; ``low`` and ``high`` are
    not. ``detectable`` and ``provable`` are for this pair alone, at 80% power; ``lowest`` is the
    largest count of solved seeds that could be told from the first arm's.
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
    items: OverItems | None = None
    detectable: float | None = None
    provable: float | None = None
    lowest: int | None = None


@dataclass(frozen=True)
class Ratio:
    """What the second arm takes of what the first takes."""

    first: float
    second: float

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second / self.first


@dataclass(frozen=True)
class Pair:
    """Two arms over a study; ratios are of the model of the study's cost task.

    ``decode_ratio`` is that of interleaved rounds, with its interval; None where neither arm is the
    one that all were measured beside, or the store does not keep it.
    """

    first: str
    second: str
    tasks: tuple[PairTask, ...]
    parameters: Ratio | None
    macs: Ratio | None
    cache_bytes_per_token: Ratio | None
    decode_p50_s: Ratio | None
    decode_ratio: record.Ratio | None
    over_tasks: Aggregate | None


def pair(view: View, first: str, second: str) -> Pair:
    """The two arms beside each other; both are arms of the study."""
    tasks = _adjusted([_task(task, first, second) for task in view.tasks])
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
        over_tasks=_over_tasks(view, first, second),
    )


def _decode_ratio(view: View, first: str, second: str) -> record.Ratio | None:
    """Second over first, where one of them is the baseline."""
    if first == view.baseline:
        return view.decode_ratio(second)
    found = view.decode_ratio(first) if second == view.baseline else None
    if found is None:
        return None
    return found.model_copy(
        update={
            "to": first,
            "value": 1 / found.value,
            "low": found.high and 1 / found.high,
            "high": found.low and 1 / found.low,
        }
    )


def _task(task: TaskView, first: str, second: str) -> PairTask:
    cells = (task.cell(first), task.cell(second))
    ran = [{run.seed for run in cell.runs if run.status != "interrupted"} for cell in cells]
    seeds = tuple(sorted(ran[0] & ran[1]))
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
    if task.result.standing == "baseline did not learn":
        return replace(result, standing="baseline did not learn")
    scores = {cell.variant: _on(cell, seeds) for cell in cells}
    if task.metric.solved is not None:
        return _counted(result, cells, scores, task.metric.solved)
    if any(side.failures for side in sides):
        return replace(result, standing="runs failed")
    if sides[0].learned is False and sides[1].learned is False:
        return replace(result, standing="neither learned")
    # The arm that learned stands in for the baseline in this check alone.
    base = first if sides[0].learned is not False else second
    found = compare(scores, baseline=base, seeds=seeds, chance=chance, better=better, margin=margin)
    difference = found.differences.get(second if base == first else first)
    if difference is None:
        return replace(result, standing="runs failed")
    difference = difference if base == first else _turned(difference)
    if found.standing in ("one seed", "no spread"):
        return replace(
            result,
            standing="one seed" if found.standing == "one seed" else "no spread",
            difference=difference,
        )
    deviation = found.deviation or 0.0
    size = {"arms": 2, "seeds": len(seeds), "power": POWER}
    return replace(
        result,
        standing="compared",
        difference=difference,
        items=_items(cells, seeds, difference),
        detectable=deviation * detectable(**size),
        provable=deviation * provable(**size),
    )


def _counted(
    result: PairTask, cells: tuple[Cell, Cell], scores: dict[str, dict[int, float]], solved: float
) -> PairTask:
    """Solved seeds beside solved seeds; a run that diverged has not solved the task."""
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
    plain = counts[first].counts
    sides = {
        "first": replace(result.first, count=plain.get(first)),
        "second": replace(result.second, count=plain.get(second)),
    }
    if not usable:
        one = len(result.seeds) == 1
        return replace(result, standing="one seed" if one else "neither learned", **sides)
    told = counts[first].counts[second]
    if counts[first].standing == "compared":
        sides["second"] = replace(result.second, count=told)
        lowest = counts[first].lowest
        return replace(result, standing="compared", lowest=lowest, **sides)
    # Only the second learned: the same test, seen from its side.
    seen = counts[second].counts[first]
    sides["second"] = replace(result.second, count=replace(told, p=seen.p, match_p=seen.match_p))
    return replace(result, standing="compared", **sides)


def _adjusted(tasks: Sequence[PairTask]) -> tuple[PairTask, ...]:
    """The tasks with p values by Holm over them, and the verdicts that follow."""
    fields = ("p", "match_p", "not_worse_p")
    adjusted = {
        field: holm(
            {
                each.task: value
                for each in tasks
                if (value := getattr(_tested(each), field, None)) is not None
            }
        )
        for field in fields
    }
    return tuple(
        _judged(each, {name: adjusted[name].get(each.task) for name in fields}) for each in tasks
    )


def _tested(task: PairTask) -> Difference | Count | None:
    if task.standing != "compared":
        return None
    return task.difference or task.second.count


def _judged(task: PairTask, p: Mapping[str, float | None]) -> PairTask:
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
    def shown(name: str) -> bool:
        value = p[name]
        return value is not None and value < LEVEL

    if shown("p"):
        return "better" if good else "worse"
    if shown("match_p"):
        return "matches"
    return "not worse" if shown("not_worse_p") else "not distinguishable"


def _side(cell: Cell, seeds: Sequence[int], metric: MetricInfo) -> Side:
    scores = list(_on(cell, seeds).values())
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


def _on(cell: Cell, seeds: Sequence[int]) -> dict[int, float]:
    return {seed: score for seed, score in cell.scores.items() if seed in seeds}


def _turned(difference: Difference) -> Difference:
    low, high = difference.low, difference.high
    return replace(
        difference,
        value=-difference.value,
        low=None if high is None else -high,
        high=None if low is None else -low,
        # Non-inferiority has a side; it was tested on the other one.
        not_worse_p=None,
    )


def _items(
    cells: tuple[Cell, Cell], seeds: Sequence[int], difference: Difference
) -> OverItems | None:
    first, second = (item_table(cell, seeds) for cell in cells)
    if first is None or second is None or first[0].shape != second[0].shape:
        return None
    low, high = difference.low, difference.high
    bounds = None if low is None or high is None else (low, high)
    return over_items((second[0] - first[0])[None], first[1], [bounds])[0]


def _over_tasks(view: View, first: str, second: str) -> Aggregate | None:
    usable = [
        task
        for task in view.tasks
        if task.result.standing in ("compared", "no spread", "one arm")
        or (isinstance(task.result, Comparison) and task.result.standing == "one seed")
    ]
    usable = [task for task in usable if task.cell(view.baseline).scores]
    pairs = [pair_on_scale(task, view.baseline, (first, second)) for task in usable]
    known = [each for each in pairs if each is not None]
    if len(known) < 2 or len(known) < len(pairs):
        return None
    return aggregate([task.name for task in usable], [np.asarray(each) for each in known])
