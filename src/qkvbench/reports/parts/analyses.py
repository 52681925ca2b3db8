"""What the layers of each arm look like on the way: panels and a table, where runs recorded it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from qkvbench.analysis import LAYER_MEASURES, WEIGHT_MEASURES
from qkvbench.reports.parts.figures import hue
from qkvbench.reports.parts.formatting import number
from qkvbench.results.record import Snapshot
from qkvbench.results.view import Cell, TaskView, View

# The measures that are drawn, and those of the table, each with its heading and its decimals.
DRAWN = {"kv_cka": "K,V CKA", "entropy": "entropy", "k_rank": "rank K"}
TABLED = {
    "kv_weight_cka": ("W_K,W_V CKA", 2),
    "kv_cka": ("K,V CKA", 2),
    "kv_overlap": ("K,V overlap", 2),
    "kv_residual": ("K,V residual", 2),
    "k_rank": ("rank K", 1),
    "v_rank": ("rank V", 1),
    "entropy": ("entropy", 2),
    "diagonal": ("diagonal", 2),
    "qk_weight_symmetry": ("W_Q,W_K symmetry", 2),
    "score_symmetry": ("Q·Kᵀ symmetry", 2),
    "attention_symmetry": ("shares' symmetry", 2),
}
BETWEEN = " · "

# In the units of the figures: their width, and what one small panel takes.
WIDTH, LEFT, TOP = 560.0, 70.0, 26.0
PANEL_HEIGHT, GAP, FOOT = 84.0, 16.0, 34.0


@dataclass(frozen=True)
class Course:
    """One arm on its way: the mean over its seeds of each measure of each layer, at each step.

    ``measures`` has lists by step, then by layer; None where a measure does not apply.
    """

    variant: str
    order: int
    seeds: int
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    measures: dict[str, list[list[float | None]]]


@dataclass(frozen=True)
class Panel:
    """One measure of one layer, as places in the figure; a line for each arm."""

    left: float
    top: float
    width: float
    low: str
    high: str
    lines: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Analyses:
    """What the page shows of one task."""

    task: str
    courses: tuple[Course, ...]
    layers: tuple[str, ...]
    last: int
    rows: tuple[str, ...]
    columns: tuple[float, ...]
    panels: tuple[Panel, ...]
    height: float
    head: tuple[str, ...]
    table: tuple[tuple[Course, tuple[str, ...]], ...]


def analyses(view: View) -> tuple[Analyses, ...]:
    """Each task whose runs looked into their layers."""
    found = ((task, courses(task)) for task in view.tasks)
    return tuple(_drawn(task.name, arms) for task, arms in found if arms)


def document(task: TaskView) -> list[dict[str, Any]]:
    """The courses of the task's arms as JSON values."""
    return [
        {
            "variant": course.variant,
            "seeds": course.seeds,
            "steps": list(course.steps),
            "layers": list(course.layers),
            "measures": course.measures,
        }
        for course in courses(task)
    ]


def courses(task: TaskView) -> tuple[Course, ...]:
    """The arms of a task that have snapshots in runs that are done."""
    found = (_course(cell, order) for order, cell in enumerate(task.cells))
    return tuple(course for course in found if course is not None)


def explained() -> list[str]:
    """What each measure of the table is, in words."""
    measures = {**WEIGHT_MEASURES, **LAYER_MEASURES}
    return [f"{head}: {measures[name].about}" for name, (head, _) in TABLED.items()]


def _course(cell: Cell, order: int) -> Course | None:
    runs = [run.snapshots for run in cell.runs if run.status == "done" and run.snapshots]
    if not runs:
        return None
    layers = tuple(runs[0][0].layers)
    runs = [run for run in runs if all(tuple(each.layers) == layers for each in run)]
    by_step = [{each.step: each for each in run} for run in runs]
    steps = tuple(sorted(set[int](by_step[0]).intersection(*by_step)))
    names = list(runs[0][0].measures)
    return Course(
        variant=cell.variant,
        order=order,
        seeds=len(runs),
        steps=steps,
        layers=layers,
        measures={
            name: [_means([run[step] for run in by_step], name, len(layers)) for step in steps]
            for name in names
        },
    )


def _means(snapshots: Sequence[Snapshot], name: str, layers: int) -> list[float | None]:
    """The mean over the snapshots for each layer; None where one of them has none."""
    rows = [each.measures.get(name) or [None] * layers for each in snapshots]
    return [_mean(values) for values in zip(*rows, strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    present = [value for value in numbers if value is not None]
    return fmean(present) if present and len(present) == len(numbers) else None


def _drawn(task: str, arms: tuple[Course, ...]) -> Analyses:
    layers = arms[0].layers
    same = tuple(course for course in arms if course.layers == layers and course.steps)
    last = max(course.steps[-1] for course in same)
    names = [name for name in DRAWN if any(_values(course, name) for course in same)]
    width = (WIDTH - LEFT - GAP * (len(layers) - 1)) / len(layers)
    lefts = tuple(LEFT + index * (width + GAP) for index in range(len(layers)))
    panels = [
        _panel(same, name, layer, (left, TOP + row * (PANEL_HEIGHT + GAP), width), last)
        for row, name in enumerate(names)
        for layer, left in enumerate(lefts)
    ]
    head = {
        name: column
        for name, column in TABLED.items()
        if any(_values(course, name) for course in same)
    }
    return Analyses(
        task=task,
        courses=same,
        layers=tuple(_short(layer) for layer in layers),
        last=last,
        rows=tuple(DRAWN[name] for name in names),
        columns=lefts,
        panels=tuple(panels),
        height=TOP + len(names) * (PANEL_HEIGHT + GAP) + FOOT,
        head=tuple(text for text, _ in head.values()),
        table=tuple(
            (
                course,
                tuple(_cell(course, name, places) for name, (_, places) in head.items()),
            )
            for course in same
        ),
    )


def _panel(
    arms: Sequence[Course],
    name: str,
    layer: int,
    place: tuple[float, float, float],
    last: int,
) -> Panel:
    """One small panel. All layers of a measure have one scale, so that they compare."""
    left, top, width = place
    values = [value for course in arms for value in _values(course, name)]
    low, high = min(values), max(values)
    room = (high - low) or max(abs(high), 1.0) / 10
    lines: list[tuple[str, str, str]] = []
    for course in arms:
        points = [
            (
                left + width * step / last,
                top + PANEL_HEIGHT * (0.96 - 0.92 * (value - low) / room),
            )
            for step, row in zip(course.steps, course.measures.get(name, []), strict=False)
            for value in [row[layer]]
            if value is not None
        ]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            lines.append((course.variant, hue(course.order), path))
    # The baseline last, so that it lies on top.
    lines.reverse()
    places = 2 if high < 10 else 0
    return Panel(left, top, width, number(low, places), number(high, places), tuple(lines))


def _values(course: Course, name: str) -> list[float]:
    rows = course.measures.get(name, [])
    return [value for row in rows for value in row if value is not None and math.isfinite(value)]


def _cell(course: Course, name: str, places: int) -> str:
    """The values after the last step, from the first layer to the last."""
    rows = course.measures.get(name) or [[None] * len(course.layers)]
    if all(value is None for value in rows[-1]):
        return "–"
    return BETWEEN.join("–" if value is None else number(value, places) for value in rows[-1])


def _short(layer: str) -> str:
    """``layer 1`` of ``blocks.0.attention``: people count from one."""
    numbers = [part for part in layer.split(".") if part.isdigit()]
    return f"layer {int(numbers[0]) + 1}" if numbers else layer
