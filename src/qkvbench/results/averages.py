"""One figure for each arm over the tasks of a benchmark: the mean of its scores, seed by seed.

It is compared like the score of a task. Seeds are random, tasks are fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qkvbench.results.across import TaskResult
from qkvbench.results.margins import Margins
from qkvbench.results.record import MetricInfo
from qkvbench.results.stats import Comparison, compare


@dataclass(frozen=True)
class Average:
    """The mean over `tasks` of a benchmark, under this project's own name for it.

    ``metric`` has their unit and the mean of their chance levels. ``left_out`` lists tasks of the
    benchmark that say nothing of variants: the baseline did not learn them, or without attention.
    """

    benchmark: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    metric: MetricInfo
    result: Comparison


def averages(
    tasks: Sequence[TaskResult], benchmarks: Mapping[str, str], margins: Margins
) -> tuple[Average, ...]:
    """The average over each benchmark of which the study has several tasks with the same unit.

    `benchmarks` maps tasks to benchmarks. Tasks judged by solved seeds have no mean.
    """
    groups: dict[tuple[str, str, str], list[TaskResult]] = {}
    for task in tasks:
        if task.name in benchmarks and isinstance(task.result, Comparison):
            key = (benchmarks[task.name], task.metric.unit, task.metric.better)
            groups.setdefault(key, []).append(task)
    found = [_average(name, group, margins) for (name, _, _), group in groups.items()]
    return tuple(each for each in found if each is not None)


def _average(benchmark: str, group: Sequence[TaskResult], margins: Margins) -> Average | None:
    """The average of one group; None if fewer than two of its tasks say something of variants."""
    mute = ("baseline did not learn", "attention not needed")
    left_out = [task for task in group if task.result.standing in mute]
    usable = [task for task in group if task not in left_out]
    if len(usable) < 2:
        return None
    first, *others = usable
    seeds = [seed for seed in first.result.seeds if all(seed in o.result.seeds for o in others)]
    metric = MetricInfo(
        name="average",
        unit=first.metric.unit,
        better=first.metric.better,
        chance=float(np.mean([task.metric.chance for task in usable])),
        solved=None,
    )
    scores: dict[str, dict[int, float]] = {cell.variant: {} for cell in first.cells}
    for arm, means in scores.items():
        by_task = [_scores(task, arm) for task in usable]
        for seed in seeds:
            # A mean over fewer tasks would not be comparable.
            if all(seed in each for each in by_task):
                means[seed] = float(np.mean([each[seed] for each in by_task]))
    return Average(
        benchmark=benchmark,
        tasks=tuple(task.name for task in usable),
        left_out=tuple(task.name for task in left_out),
        metric=metric,
        result=compare(
            scores,
            baseline=first.result.baseline,
            seeds=seeds,
            metric=metric,
            margin=margins.of(benchmark, metric),
        ),
    )


def _scores(task: TaskResult, arm: str) -> Mapping[int, float]:
    return next(cell.scores for cell in task.cells if cell.variant == arm)
