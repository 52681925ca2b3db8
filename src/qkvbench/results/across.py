"""Comparisons of arms beyond one score: over test items, over tasks, and against cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qkvbench.results.aggregate import Aggregate, Scale, aggregate
from qkvbench.results.dominance import LATENCY_TOLERANCE, ParetoPlace, pareto_places, rivals
from qkvbench.results.items import ItemScores
from qkvbench.results.record import Cost, Measurement, MetricInfo, Record
from qkvbench.results.resampling import Bounds, ItemBounds, bounds_over_items
from qkvbench.results.stats import WORTH, Comparison, Tally, reaches, sensitivity
from qkvbench.variant import NO_ATTENTION, UNIFORM, write

CostKind = Literal["cache", "parameters", "latency"]


class ArmRuns(Protocol):
    """The part of `view.Cell` that is read here."""

    @property
    def variant(self) -> str:
        """The arm."""
        ...

    @property
    def runs(self) -> tuple[Record, ...]:
        """Its runs."""
        ...

    @property
    def scores(self) -> dict[int, float]:
        """The score of each seed that is done."""
        ...

    @property
    def solved_steps(self) -> dict[int, float | None]:
        """The step at which each seed solved the task."""
        ...

    @property
    def diverged(self) -> tuple[int, ...]:
        """The seeds that diverged."""
        ...


class TaskResult(Protocol):
    """The part of `view.TaskView` that is read here."""

    @property
    def name(self) -> str:
        """The task."""
        ...

    @property
    def metric(self) -> MetricInfo:
        """Its metric."""
        ...

    @property
    def result(self) -> Comparison | Tally:
        """The statistics of its arms."""
        ...

    @property
    def cells(self) -> tuple[ArmRuns, ...]:
        """Its arms."""
        ...


# The arm without attention: zero on every scale.
FLOOR = write(NO_ATTENTION)
# The arms that show what attention is worth: one that cannot choose, and none at all.
CONTROLS = (write(UNIFORM), FLOOR)


def has_attention(arm: str) -> bool:
    """Whether any layer of an arm attends, whatever its blocks are."""
    return any(layer != FLOOR for layer in arm.partition("~")[0].split(";"))


@dataclass(frozen=True)
class Front:
    """Pareto status of each arm on quality and one cost."""

    cost: CostKind
    places: dict[str, ParetoPlace]


def item_differences(cells: Sequence[ArmRuns], result: Comparison | Tally) -> dict[str, ItemBounds]:
    """Each arm minus the baseline over the test items, for arms whose records have item scores.

    Bounds over items hold for each arm alone; bounds over seeds are those of the study.
    """
    if not isinstance(result, Comparison) or result.standing != "compared":
        return {}
    tables = {
        cell.variant: table
        for cell in cells
        if cell.variant == result.baseline or cell.variant in result.differences
        if (table := item_table(cell, result.seeds)) is not None
    }
    base = tables.pop(result.baseline, None)
    same = {arm: table for arm, table in tables.items() if base and table[0].shape == base[0].shape}
    if base is None or not same:
        return {}
    seed_bounds: list[Bounds | None] = []
    for arm in same:
        each = result.differences[arm]
        seed_bounds.append(None if each.low is None or each.high is None else (each.low, each.high))
    # Shape (arms, seeds, blocks).
    differences = np.stack([table[0] - base[0] for table in same.values()])
    bounds = bounds_over_items(differences, base[1], seed_bounds)
    return {arm: each for arm, each in zip(same, bounds, strict=True) if each is not None}


def item_table(cell: ArmRuns, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """An arm's item scores (seeds, blocks) and the weights of the blocks; None if a seed has none.

    The items are the task's fixed test split, so they are the same for every seed and arm.
    """
    by_seed: dict[int, ItemScores | None] = {run.seed: run.items for run in cell.runs}
    arrays = [each.arrays() for seed in seeds if (each := by_seed.get(seed)) is not None]
    if len(arrays) < len(seeds) or len({len(values) for values, _ in arrays}) != 1:
        return None
    return np.stack([values for values, _ in arrays]), arrays[0][1]


def fronts(
    cells: Sequence[ArmRuns],
    result: Comparison | Tally,
    metric: MetricInfo,
    costs: Mapping[str, Cost],
    measurements: Mapping[str, Measurement],
) -> tuple[Front, ...]:
    """Pareto status of the arms on quality against cache, parameters and latency, if known."""
    scores = {cell.variant: cell.scores for cell in cells}
    steps = {cell.variant: cell.solved_steps for cell in cells}
    compared = rivals(scores, steps, result, metric)
    if len(compared) < 2:
        return ()
    cache = {
        arm: float(cost.cache_bytes_per_token)
        for arm, cost in costs.items()
        if cost.cache_bytes_per_token is not None
    }
    parameters = {arm: float(cost.total_parameters) for arm, cost in costs.items()}
    latency = {
        arm: each.decode_p50_s
        for arm, each in measurements.items()
        if each.decode_p50_s is not None
    }
    kinds: list[tuple[CostKind, dict[str, float], float]] = [
        ("cache", cache, 0.0),
        ("parameters", parameters, 0.0),
        ("latency", latency, LATENCY_TOLERANCE),
    ]
    return tuple(
        Front(kind, pareto_places(values, compared, tolerance=tolerance))
        for kind, values, tolerance in kinds
        if values
    )


def aggregates(tasks: Sequence[TaskResult], arms: Sequence[str]) -> dict[str, Aggregate]:
    """One figure over the tasks that need attention, for each arm with a run of every seed.

    Empty if the study has no arm without attention: there is no scale then.
    """
    usable = [task for task in tasks if task.result.standing == "compared" and _has_scale(task)]
    by_arm: dict[str, Aggregate] = {}
    for arm in arms[1:]:
        scales = {task.name: _scale(task, arms[0], arm) for task in usable}
        complete = {name: scale for name, scale in scales.items() if scale is not None}
        if arm != FLOOR and len(complete) == len(scales):
            over_tasks = aggregate(complete)
            if over_tasks is not None:
                by_arm[arm] = over_tasks
    return by_arm


def _has_scale(task: TaskResult) -> bool:
    """Whether attention is worth enough on a task to measure a score as a part of it.

    That of a comparison is. Of a task whose solved seeds are counted, the arm without attention may
    be later and end as high: it must not have solved the task in the end, and the gain is to be
    `WORTH` times the difference that is detectable at either end.
    """
    cells = {cell.variant: list(cell.scores.values()) for cell in task.cells}
    floor, base = cells.get(FLOOR), cells.get(task.result.baseline)
    if not floor or not base:
        return True
    metric = task.metric
    lowest = float(np.mean(floor))
    gained = float(np.mean(base)) - lowest
    gained = gained if metric.better == "higher" else -gained
    if isinstance(task.result, Comparison):
        return gained > 0
    if metric.solved is not None and reaches(lowest, metric.solved, better=metric.better):
        return False
    found = [sensitivity(each, metric=metric) for each in (floor, base) if len(each) > 1]
    return gained > WORTH * max((detectable for detectable, *_ in filter(None, found)), default=0.0)


def _scale(task: TaskResult, baseline: str, arm: str) -> Scale | None:
    """The scores of the task's two ends and of an arm; a run that diverged counts as the floor.

    None if a seed is missing for another reason, or if there is no floor.
    """
    cells = {cell.variant: cell for cell in task.cells}
    if FLOOR not in cells or not cells[FLOOR].scores:
        return None
    lowest = float(np.mean(list(cells[FLOOR].scores.values())))
    rows: list[np.ndarray] = []
    for name in (FLOOR, baseline, arm):
        scores = {**cells[name].scores, **dict.fromkeys(cells[name].diverged, lowest)}
        if any(seed not in scores for seed in task.result.seeds):
            return None
        rows.append(np.array([scores[seed] for seed in task.result.seeds]))
    return Scale(*rows)
