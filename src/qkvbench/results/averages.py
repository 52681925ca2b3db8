"""One figure for each arm over the tasks of a benchmark: the mean of its scores, seed by seed.

It is compared as a task's score is: paired by seed, its interval simultaneous over the arms. The
seeds are all that varies; the tasks are taken as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qkvbench.results.across import Task
from qkvbench.results.margins import Margins
from qkvbench.results.record import MetricInfo
from qkvbench.results.stats import Comparison, compare


@dataclass(frozen=True)
class Average:
    """The mean over `tasks` of a benchmark, under this bench's own name for it.

    ``metric`` has their unit and the mean of their chance levels. ``unlearned`` are tasks of the
    benchmark that are left out, because the baseline did not learn them.
    """

    benchmark: str
    tasks: tuple[str, ...]
    unlearned: tuple[str, ...]
    metric: MetricInfo
    result: Comparison


def averages(
    tasks: Sequence[Task], benchmarks: Mapping[str, str], margins: Margins
) -> tuple[Average, ...]:
    """The average over each benchmark of which the study has several tasks in one unit.

    `benchmarks` names each task's. Tasks whose runs are counted as solved or not have no mean.
    """
    groups: dict[tuple[str, str, str], list[Task]] = {}
    for task in tasks:
        if task.name in benchmarks and isinstance(task.result, Comparison):
            key = (benchmarks[task.name], task.metric.unit, task.metric.better)
            groups.setdefault(key, []).append(task)
    made = [_average(name, group, margins) for (name, _, _), group in groups.items()]
    return tuple(each for each in made if each is not None)


def _average(benchmark: str, group: Sequence[Task], margins: Margins) -> Average | None:
    """The average of one group; None where fewer than two tasks were learned."""
    unlearned = [task for task in group if task.result.standing == "baseline did not learn"]
    usable = [task for task in group if task not in unlearned]
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
    for arm, found in scores.items():
        each = [_scores(task, arm) for task in usable]
        for seed in seeds:
            # A mean over fewer tasks would be another figure.
            if all(seed in one for one in each):
                found[seed] = float(np.mean([one[seed] for one in each]))
    return Average(
        benchmark=benchmark,
        tasks=tuple(task.name for task in usable),
        unlearned=tuple(task.name for task in unlearned),
        metric=metric,
        result=compare(
            scores,
            baseline=first.result.baseline,
            seeds=seeds,
            chance=metric.chance,
            better=metric.better,
            margin=margins.of(benchmark, metric),
        ),
    )


def _scores(task: Task, arm: str) -> Mapping[int, float]:
    return next(cell.scores for cell in task.cells if cell.variant == arm)
