"""Measures of the layers of each arm during training: panels and a table, if runs recorded them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from qkvbench.analysis import LAYER_MEASURES, WEIGHT_MEASURES
from qkvbench.reports.parts.formatting import SEPARATOR, number
from qkvbench.reports.parts.svg import color_class
from qkvbench.results.record import Snapshot
from qkvbench.results.view import Cell, TaskView, View

# The measures of the panels, and those of the table, each with its heading and its decimals.
PLOTTED = {"kv_cka": "K,V CKA", "entropy": "entropy", "k_rank": "rank K"}
TABLE_COLUMNS = {
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
    "attention_symmetry": ("weights' symmetry", 2),
}

# A change of CKA from which the sentence says that there is one.
CHANGED = 0.1

# In the units of the SVG: the width of the figure, and the size of a panel.
WIDTH, LEFT, TOP = 560.0, 70.0, 26.0
PANEL_HEIGHT, GAP, BOTTOM = 84.0, 16.0, 34.0


@dataclass(frozen=True)
class LayerHistory:
    """The mean over the seeds of an arm of each measure of each layer, at each step.

    ``measures`` has lists by step, then by layer; None if a measure does not apply.
    """

    variant: str
    order: int
    seeds: int
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    measures: dict[str, list[list[float | None]]]


@dataclass(frozen=True)
class Panel:
    """One measure of one layer in figure coordinates; a line for each arm."""

    left: float
    top: float
    width: float
    low: str
    high: str
    lines: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Analyses:
    """A sentence on the first arm, the figures and the table of one task."""

    task: str
    sentence: str | None
    histories: tuple[LayerHistory, ...]
    layers: tuple[str, ...]
    last: int
    rows: tuple[str, ...]
    columns: tuple[float, ...]
    panels: tuple[Panel, ...]
    height: float
    head: tuple[str, ...]
    table: tuple[tuple[LayerHistory, tuple[str, ...]], ...]


def analyses(view: View) -> tuple[Analyses, ...]:
    """The analysis of each task whose runs have snapshots of their layers."""
    # A model without attention has no layers to draw.
    found = ((task, tuple(each for each in histories(task) if each.layers)) for task in view.tasks)
    return tuple(_analysis(task.label, arms) for task, arms in found if arms)


def document(task: TaskView) -> list[dict[str, Any]]:
    """The histories of the task's arms as JSON values."""
    return [
        {
            "variant": history.variant,
            "seeds": history.seeds,
            "steps": list(history.steps),
            "layers": list(history.layers),
            "measures": history.measures,
        }
        for history in histories(task)
    ]


def histories(task: TaskView) -> tuple[LayerHistory, ...]:
    """The arms of a task that have snapshots in runs that are done."""
    found = (_history(cell, order) for order, cell in enumerate(task.cells))
    return tuple(history for history in found if history is not None)


def measure_descriptions() -> list[str]:
    """A description of each measure of the table."""
    measures = {**WEIGHT_MEASURES, **LAYER_MEASURES}
    return [f"{head}: {measures[name].about}" for name, (head, _) in TABLE_COLUMNS.items()]


def _history(cell: Cell, order: int) -> LayerHistory | None:
    runs = [run.snapshots for run in cell.runs if run.status == "done" and run.snapshots]
    if not runs:
        return None
    layers = tuple(runs[0][0].layers)
    runs = [run for run in runs if all(tuple(each.layers) == layers for each in run)]
    by_step = [{each.step: each for each in run} for run in runs]
    steps = tuple(sorted(set[int](by_step[0]).intersection(*by_step)))
    names = list(runs[0][0].measures)
    return LayerHistory(
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
    """The mean over the snapshots for each layer; None if one of them has no value."""
    rows = [each.measures.get(name) or [None] * layers for each in snapshots]
    return [_mean(values) for values in zip(*rows, strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    present = [value for value in numbers if value is not None]
    return fmean(present) if present and len(present) == len(numbers) else None


def _analysis(task: str, arms: tuple[LayerHistory, ...]) -> Analyses:
    layers = arms[0].layers
    same = tuple(history for history in arms if history.layers == layers and history.steps)
    last = max(history.steps[-1] for history in same)
    names = [name for name in PLOTTED if any(_values(history, name) for history in same)]
    width = (WIDTH - LEFT - GAP * (len(layers) - 1)) / len(layers)
    lefts = tuple(LEFT + index * (width + GAP) for index in range(len(layers)))
    panels = [
        _panel(same, name, layer, (left, TOP + row * (PANEL_HEIGHT + GAP), width), last)
        for row, name in enumerate(names)
        for layer, left in enumerate(lefts)
    ]
    head = {
        name: column
        for name, column in TABLE_COLUMNS.items()
        if any(_values(history, name) for history in same)
    }
    return Analyses(
        task=task,
        sentence=_sentence(same[0]) if same else None,
        histories=same,
        layers=tuple(_layer_name(layer) for layer in layers),
        last=last,
        rows=tuple(PLOTTED[name] for name in names),
        columns=lefts,
        panels=tuple(panels),
        height=TOP + len(names) * (PANEL_HEIGHT + GAP) + BOTTOM,
        head=tuple(text for text, _ in head.values()),
        table=tuple(
            (
                history,
                tuple(_cell(history, name, places) for name, (_, places) in head.items()),
            )
            for history in same
        ),
    )


def _sentence(history: LayerHistory) -> str | None:
    """How alike K and V of an arm became, as `CHANGED` and the two ends of training say it."""
    rows = history.measures.get("kv_cka", [])
    if len(rows) < 2:
        return None
    ends = [
        (_layer_name(layer), first, last)
        for layer, first, last in zip(history.layers, rows[0], rows[-1], strict=True)
        if first is not None and last is not None
    ]
    if not ends:
        return None
    if all(last - first >= CHANGED for _, first, last in ends):
        became = "became more alike in training"
    elif all(first - last >= CHANGED for _, first, last in ends):
        became = "became less alike in training"
    elif all(abs(last - first) < CHANGED for _, first, last in ends):
        became = "are about as alike after training as before it"
    else:
        became = "changed differently from layer to layer"
    values = ", ".join(
        f"{name} from {number(first, 2)} to {number(last, 2)}" for name, first, last in ends
    )
    return f"K and V of `{history.variant}` {became} (CKA of {values})."


def _panel(
    arms: Sequence[LayerHistory],
    name: str,
    layer: int,
    box: tuple[float, float, float],
    last: int,
) -> Panel:
    """One panel. All layers of a measure share one scale."""
    left, top, width = box
    values = [value for history in arms for value in _values(history, name)]
    low, high = min(values), max(values)
    extent = (high - low) or max(abs(high), 1.0) / 10
    lines: list[tuple[str, str, str]] = []
    for history in arms:
        points = [
            (
                left + width * step / last,
                top + PANEL_HEIGHT * (0.96 - 0.92 * (value - low) / extent),
            )
            for step, row in zip(history.steps, history.measures.get(name, []), strict=False)
            for value in [row[layer]]
            if value is not None
        ]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            lines.append((history.variant, color_class(history.order), path))
    # The baseline last, so that it is on top.
    lines.reverse()
    places = 2 if high < 10 else 0
    return Panel(left, top, width, number(low, places), number(high, places), tuple(lines))


def _values(history: LayerHistory, name: str) -> list[float]:
    rows = history.measures.get(name, [])
    return [value for row in rows for value in row if value is not None and math.isfinite(value)]


def _cell(history: LayerHistory, name: str, places: int) -> str:
    """The values after the last step, from the first layer to the last."""
    rows = history.measures.get(name) or [[None] * len(history.layers)]
    if all(value is None for value in rows[-1]):
        return "–"
    return SEPARATOR.join("–" if value is None else number(value, places) for value in rows[-1])


def _layer_name(layer: str) -> str:
    """``layer 1`` for ``blocks.0.attention``, counting from one."""
    numbers = [part for part in layer.split(".") if part.isdigit()]
    return f"layer {int(numbers[0]) + 1}" if numbers else layer
