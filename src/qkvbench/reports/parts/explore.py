"""The numbers behind the picture, as JSON inside the page: its script computes none itself."""

import json
from typing import Any

from markupsafe import Markup

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports.parts import picture as pictures
from qkvbench.reports.parts.answer_table import csv_text, latex, markdown
from qkvbench.reports.parts.formatting import bounds, decimals, number, p_text, signed
from qkvbench.reports.parts.headline import losing
from qkvbench.reports.parts.table import SYMBOLS, nickname
from qkvbench.results.dominance import ParetoPlace
from qkvbench.results.pair import pair_on_task
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView, View

# About 45 bytes each: with more of them the page has only the comparisons with the baseline.
MOST_PAIRS = 12_000


def all_pairs(view: View) -> bool:
    """Whether the page has the comparison of any two arms, and not of the baseline alone."""
    return len(view.arms) * (len(view.arms) - 1) * len(view.tasks) <= MOST_PAIRS


def document(view: View, style: str) -> dict[str, Any]:
    """Everything that the picture shows: arms, tasks, pictures, cells, comparisons and files."""
    choice = pictures.default_choice(view)
    return {
        "arms": [{"arm": arm, "name": _name(arm)} for arm in view.arms],
        "tasks": [task.label for task in view.tasks],
        "costs": [_costs(view, arm) for arm in view.arms],
        "axes": {
            kind: [
                index for index, task in enumerate(view.tasks) if pictures.points(view, task, kind)
            ]
            for kind in pictures.AXES
        },
        "compared": _compared(view, choice),
        "shown": [view.tasks.index(choice[0]), choice[1]] if choice else None,
        "pictures": [
            {
                kind: [pictures.numbers(made) for made in _sizes(view, task, kind)]
                for kind in pictures.AXES
            }
            for task in view.tasks
        ],
        "cells": [[_cell(task, arm) for arm in view.arms] for task in view.tasks],
        "pairs": _pairs(view),
        "files": {
            "csv": csv_text(view),
            "md": markdown(view),
            "tex": latex(view),
        },
        "style": style,
    }


def embedded(value: object) -> Markup:
    """JSON that can stand in a script element: no text of it ends the element or a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _compared(view: View, choice: tuple[TaskView, pictures.CostKind] | None) -> int:
    """The arm that is compared with the baseline at first: that of the headline, if it has one."""
    if choice is None:
        return 0
    losses, costs = losing(view), pictures.costs(view, *choice)
    arms = [arm for arm in view.arms[1:] if arm in costs]
    if not arms:
        return 0
    fewest = min(
        arms,
        key=lambda arm: (
            arm not in losses or costs[arm] >= costs.get(view.baseline, 0.0),
            len(losses.get(arm, ())),
            costs[arm],
        ),
    )
    return view.arms.index(fewest)


def _sizes(view: View, task: TaskView, kind: pictures.CostKind) -> list[pictures.Picture]:
    made = (pictures.picture(view, task, kind, size) for size in (pictures.WIDE, pictures.PHONE))
    return [each for each in made if each is not None]


def _name(arm: str) -> str:
    """The arm's name in the catalogue; empty if it has none, or is called so itself."""
    name = nickname(arm)
    return "" if name in (None, arm) else name


def _costs(view: View, arm: str) -> list[str]:
    """Cache, parameters and decode time, each as text; empty if it is not known."""
    cost, measured = view.costs.get(arm), view.measurements.get(arm)
    cache = cost.cache_bytes_per_token if cost else None
    step = measured.decode_p50_s if measured else None
    return [
        "" if cache is None else f"{bytes_text(cache)} of cache per token",
        "" if cost is None else f"{count_text(cost.total_parameters)} parameters",
        "" if step is None else f"{seconds_text(step)} per decode step",
    ]


def _cell(task: TaskView, arm: str) -> list[Any]:
    """The score, the comparison with the baseline, and the Pareto place on each cost, in words."""
    places = decimals(task.result)
    match task.result:
        case Comparison(means=means):
            mean = means.get(arm)
            score = "no score" if mean is None else number(mean.value, places)
            if mean is not None and mean.low is not None and mean.high is not None:
                score += f" [{number(mean.low, places)}, {number(mean.high, places)}]"
        case Tally(counts=counts):
            count = counts.get(arm)
            score = "no run" if count is None else f"{count.solved} of {count.seeds} seeds"
            if count is not None and count.step is not None:
                score += f", median step {count.step:.0f}"
    fronts = {front.cost: front.places[arm] for front in task.fronts if arm in front.places}
    return [score, *(_place_text(fronts.get(kind)) for kind in pictures.AXES)]


def _place_text(place: ParetoPlace | None) -> str:
    if place is None:
        return ""
    return f"{place.outlook} by {place.by}" if "dominated" in place.outlook else place.outlook


def _pairs(view: View) -> list[list[list[Any]]]:
    """By task, first arm and second arm: the verdict on the second, the difference, and p."""
    firsts = view.arms if all_pairs(view) else view.arms[:1]
    return [
        [
            [0 if first == second else _pair(task, first, second) for second in view.arms]
            for first in firsts
        ]
        for task in view.tasks
    ]


def _pair(task: TaskView, first: str, second: str) -> list[str]:
    found = pair_on_task(task, first, second)
    places = decimals(task.result)
    if found.verdict is None:
        each = found.difference
        return [found.standing, "" if each is None else signed(each.value, places), ""]
    verdict = SYMBOLS.get(found.verdict, "") + found.verdict
    if found.difference is not None:
        each = found.difference
        p = "" if each.p is None else p_text(each.p)
        return [verdict, f"{signed(each.value, places)} {bounds(each, places)}".strip(), p]
    one, other = found.first.count, found.second.count
    if one is None or other is None:
        return [verdict, "", ""]
    counts = f"{one.solved}/{one.seeds} → {other.solved}/{other.seeds} solved"
    return [verdict, counts, "" if other.p is None else p_text(other.p)]
