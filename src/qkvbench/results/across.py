"""Comparisons of arms beyond one score: over test items, over tasks, and against cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qkvbench.results.aggregate import Aggregate, aggregate, normalized
from qkvbench.results.dominance import LATENCY_TOLERANCE, ParetoPlace, pareto_places, rivals
from qkvbench.results.items import ItemScores
from qkvbench.results.record import Cost, Measurement, MetricInfo, Record
from qkvbench.results.resampling import Bounds, ItemBounds, bounds_over_items
from qkvbench.results.stats import Comparison, Tally

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
    compared = rivals({cell.variant: cell.scores for cell in cells}, result, metric.better)
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
    """One figure over the tasks whose baseline learned, for each arm with a run of every seed."""
    usable = [task for task in tasks if task.result.standing == "compared"]
    by_arm: dict[str, Aggregate] = {}
    for arm in arms[1:]:
        scores = [normalized_scores(task, arms[0], (arms[0], arm)) for task in usable]
        pairs = [pair for pair in scores if pair is not None]
        if len(pairs) < 2 or len(pairs) < len(usable):
            continue
        over_tasks = aggregate([task.name for task in usable], pairs)
        if over_tasks is not None:
            by_arm[arm] = over_tasks
    return by_arm


def normalized_scores(task: TaskResult, reference: str, arms: tuple[str, str]) -> np.ndarray | None:
    """The normalized scores (2, seeds) of two arms; a run that diverged counts as chance.

    None if a seed is missing for another reason.
    """
    cells = {cell.variant: cell for cell in task.cells}
    base = list(cells[reference].scores.values())
    chance = task.metric.chance
    scale = float(np.mean(base))
    rows: list[list[float]] = []
    for arm in arms:
        cell = cells[arm]
        scores = {**cell.scores, **dict.fromkeys(cell.diverged, chance)}
        if any(seed not in scores for seed in task.result.seeds):
            return None
        rows.append(
            [normalized(scores[seed], chance=chance, reference=scale) for seed in task.result.seeds]
        )
    return np.array(rows)
