"""Every arm's gap to the baseline on one task, from best to worst: a figure for a paper."""

import math
from collections.abc import Callable

from markupsafe import Markup

from qkvbench.reports.parts.formatting import (
    decimals,
    metric_text,
    number,
    share,
    signed,
    value_and_half,
)
from qkvbench.reports.parts.picture import Size, drawing
from qkvbench.reports.parts.svg import padded_range, places_of, scale, tag, text, ticks
from qkvbench.reports.parts.table import SYMBOLS, TONES
from qkvbench.results.stats import Comparison, Difference, Verdict
from qkvbench.results.view import TaskView

# Of the size of a letter: a row, the head, the foot; a letter of an arm's name, and of a number.
ROW, HEAD, FOOT = 1.6, 3.2, 2.6
NAME_LETTER, LETTER = 0.54, 0.56
# An arm that loses more than this share of what attention is worth would squeeze all others.
SHOWN = 0.5
# So many letters are no room for intervals in numbers beside those that are drawn.
NARROW = 40
# The column of parameters, as a share of the baseline's.
SIZE = "size"
LEGEND = (
    "A bar is the 95% interval of the difference of means to the baseline. ▼ ▲ worse and better "
    "for certain, ▽ △ likely; ≈ ~ within the margin. An arrow points beyond the scale."
)


def gaps(task: TaskView, wide: Size) -> tuple[Markup, Size] | None:
    """The figure and its size, as wide as `wide`; None if the task compares no arm by its mean."""
    result = task.result
    if not isinstance(result, Comparison) or not result.differences:
        return None
    worse = 1 if task.metric.better == "lower" else -1
    rows = sorted(result.differences.items(), key=lambda each: worse * each[1].value)
    letters, baseline = wide.letters, result.baseline
    size = Size(wide.width, letters * (ROW * len(rows) + HEAD + FOOT), letters)
    most = SHOWN * result.worth if result.worth else math.inf
    shown = [each for _, each in rows if worse * each.value <= most]
    ends = [end for each in shown for end in (each.value, each.low, each.high) if end is not None]
    low, high = padded_range([0.0, *ends])
    written = _value if size.width > NARROW * letters else _value_alone
    values = {arm: written(each, decimals(result), task.verdicts.get(arm)) for arm, each in rows}
    sizes = {arm: share(_size(task, arm, baseline)) for arm, _ in rows}
    left = letters * NAME_LETTER * (3 + max(len(arm) for arm, _ in rows))
    edge = size.width - 0.3 * letters
    value_edge = edge - letters * LETTER * (2 + max(map(len, [SIZE, *sizes.values()])))
    right = value_edge - letters * LETTER * (1 + max(map(len, values.values())))
    x = scale(low, high, left + 0.5 * letters, right - 0.5 * letters)
    bottom = size.height - FOOT * letters
    metric = f"{metric_text(task.metric)} on {task.label}, less that of {baseline}"
    parts = [
        tag("title", metric),
        tag("desc", LEGEND),
        text(0.3 * letters, letters, f"{metric} ({'→' if worse > 0 else '←'} worse)", "axis"),
        text(edge, (HEAD - 0.6) * letters, SIZE, "axis", "end"),
    ]
    marks = ticks(low, high, max(3, int((right - left) / (6 * letters))))
    for value in marks:
        if low <= value <= high:
            line = f"M{x(value):.1f} {(HEAD - 0.3) * letters:.1f}V{bottom:.1f}"
            parts.append(tag("path", d=line, class_="grid" if abs(value) > 1e-9 else "level"))
            label = number(value, places_of(marks))
            parts.append(text(x(value), bottom + 1.4 * letters, label, "tick", "middle"))
    for index, (arm, each) in enumerate(rows):
        verdict = task.verdicts.get(arm, "not distinguishable")
        name, base = f"{SYMBOLS.get(verdict, '')}{arm}", 0.32 * letters
        own = [
            text(left - 0.6 * letters, base, name, "label", "end"),
            *_bar(each, x, right if worse * each.value > most else None, letters),
            text(value_edge, base, values[arm], "tick", "end"),
            text(edge, base, sizes[arm], "tick", "end"),
        ]
        place = f"translate(0 {letters * (HEAD + ROW * (index + 0.5)):.1f})"
        kind = f"mark {TONES.get(verdict, 'quiet')}"
        parts.append(tag("g", Markup("").join(own), class_=kind, transform=place))
    return drawing(parts, size), size


def _value_alone(each: Difference, places: int, _: Verdict | None) -> str:
    return signed(each.value, places)


def _value(each: Difference, places: int, verdict: Verdict | None) -> str:
    value, half = value_and_half(each, places, verdict)
    return f"{value} ±{half}" if half else value


def _size(task: TaskView, arm: str, baseline: str) -> float:
    return task.costs[arm].total_parameters / task.costs[baseline].total_parameters


def _bar(
    each: Difference, x: Callable[[float], float], beyond: float | None, letters: float
) -> list[Markup]:
    """The bar and the dot, or an arrow at the edge."""
    if beyond is not None:
        wing = 0.35 * letters
        arrow = f"M{beyond - 2 * wing:.1f} {-wing:.1f}l{wing:.1f} {wing:.1f}l{-wing:.1f} {wing:.1f}"
        return [tag("path", d=arrow, class_="bar")]
    parts: list[Markup] = []
    if each.low is not None and each.high is not None:
        cap = 0.25 * letters
        caps = "".join(f"M{x(end):.1f} {-cap:.1f}v{2 * cap:.1f}" for end in (each.low, each.high))
        parts.append(tag("path", d=f"M{x(each.low):.1f} 0H{x(each.high):.1f}{caps}", class_="bar"))
    dot = tag("circle", cx=f"{x(each.value):.1f}", cy=0, r=f"{0.32 * letters:.1f}", class_="dot")
    return [*parts, dot]
