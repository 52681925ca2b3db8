"""What cells come to beyond one score: over items, over tasks, and beside what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qkvbench.results.aggregate import Aggregate, aggregate, normalized
from qkvbench.results.dominance import SAME_LATENCY, Place, outlooks, rivals
from qkvbench.results.items import ItemScores
from qkvbench.results.record import Cost, Measurement, MetricInfo, Record
from qkvbench.results.resampling import Bounds, OverItems, over_items
from qkvbench.results.stats import Comparison, Tally

Kind = Literal["cache", "parameters", "latency"]


class Arm(Protocol):
    """What is read of a cell."""

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


class Task(Protocol):
    """What is read of a task's view."""

    @property
    def name(self) -> str:
        """The task."""
        ...

    @property
    def metric(self) -> MetricInfo:
        """What it is judged by."""
        ...

    @property
    def result(self) -> Comparison | Tally:
        """What its arms come to."""
        ...

    @property
    def cells(self) -> tuple[Arm, ...]:
        """Its arms."""
        ...


@dataclass(frozen=True)
class Front:
    """Each arm's place on quality and one cost."""

    cost: Kind
    places: dict[str, Place]


def item_differences(cells: Sequence[Arm], result: Comparison | Tally) -> dict[str, OverItems]:
    """Each arm minus the baseline over the test items; the arms that kept their items' scores.

    Bounds are for each arm alone over items, and those over seeds are the study's.
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
    fit = {arm: table for arm, table in tables.items() if base and table[0].shape == base[0].shape}
    if base is None or not fit:
        return {}
    bounds: list[Bounds | None] = []
    for arm in fit:
        each = result.differences[arm]
        bounds.append(None if each.low is None or each.high is None else (each.low, each.high))
    found = over_items(np.stack([table[0] - base[0] for table in fit.values()]), base[1], bounds)
    return {arm: each for arm, each in zip(fit, found, strict=True) if each is not None}


def item_table(cell: Arm, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """The scores (seeds, blocks) of an arm's items, and the blocks' shares; None if one is lacking.

    The items are the task's fixed test split, so they are the same for every seed and arm.
    """
    kept: dict[int, ItemScores | None] = {run.seed: run.items for run in cell.runs}
    arrays = [each.arrays() for seed in seeds if (each := kept.get(seed)) is not None]
    if len(arrays) < len(seeds) or len({len(values) for values, _ in arrays}) != 1:
        return None
    return np.stack([values for values, _ in arrays]), arrays[0][1]


def fronts(
    cells: Sequence[Arm],
    result: Comparison | Tally,
    metric: MetricInfo,
    costs: Mapping[str, Cost],
    measurements: Mapping[str, Measurement],
) -> tuple[Front, ...]:
    """The arms' places on quality and cache, parameters and latency, of those that the task has."""
    known = rivals({cell.variant: cell.scores for cell in cells}, result, metric.better)
    if len(known) < 2:
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
    kinds: list[tuple[Kind, dict[str, float], float]] = [
        ("cache", cache, 0.0),
        ("parameters", parameters, 0.0),
        ("latency", latency, SAME_LATENCY),
    ]
    return tuple(
        Front(kind, outlooks(values, known, same=same)) for kind, values, same in kinds if values
    )


def aggregates(tasks: Sequence[Task], arms: Sequence[str]) -> dict[str, Aggregate]:
    """One figure over the tasks whose baseline learned, for each arm with a run of every seed."""
    usable = [task for task in tasks if task.result.standing == "compared"]
    found: dict[str, Aggregate] = {}
    for arm in arms[1:]:
        pairs = [pair for task in usable if (pair := _pair(task, arms[0], arm)) is not None]
        if len(pairs) < 2 or len(pairs) < len(usable):
            continue
        one = aggregate([task.name for task in usable], pairs)
        if one is not None:
            found[arm] = one
    return found


def pair_on_scale(task: Task, reference: str, arms: tuple[str, str]) -> np.ndarray | None:
    """The normalized scores of two arms by seed; a run that diverged stands at chance.

    None where a seed is lacking for another reason.
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


def _pair(task: Task, baseline: str, arm: str) -> np.ndarray | None:
    return pair_on_scale(task, baseline, (baseline, arm))
