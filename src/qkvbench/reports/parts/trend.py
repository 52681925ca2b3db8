"""Gaps by training budget and size, of several studies: a sentence, a table, and a figure."""

import math
from itertools import cycle
from typing import Any

from markupsafe import Markup

from qkvbench.cost.units import count_text
from qkvbench.reports.parts.formatting import (
    arms_text,
    metric_text,
    number,
    p_text,
    share,
    signed,
)
from qkvbench.reports.parts.svg import apart, padded_range, places_of, scale, tag, text, ticks
from qkvbench.results.across import FLOOR
from qkvbench.results.sums import Sum
from qkvbench.results.trend import ArmTrend, Axis, Place, TaskTrend, Trends

WORDS = tuple(
    f"{how}{what}" for what in ("shrinks", "grows", "changes sign") for how in ("", "likely ")
)
# All in the SVG's own units.
WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 110, 50, 44
LABEL_HEIGHT = 15.0
HUES = ("#1b6ca8", "#c2562d", "#3b8b4c", "#7d4fa0", "#777777", "#b8860b", "#c0407f", "#2a9d9d")
STYLE = (
    "text { font: 12px system-ui, sans-serif; } .title { font-size: 14px; fill: #222222; } "
    ".tick { fill: #555555; } .arm { fill: currentColor; } .grid { stroke: #e6e6e6; } "
    ".zero { stroke: #888888; } .line { stroke: currentColor; stroke-width: 1.6; fill: none; }"
)


def lines(found: Trends, against: str) -> list[str]:
    """The answer on each task, its table, and how to read it."""
    parts = [line for trend in found.tasks for line in (*_of_task(trend, against), "")]
    reasons = sorted(set(found.left_out.values()))
    for reason in reasons:
        named = [task for task, own in found.left_out.items() if own == reason]
        parts.append(f"Left out, {reason}: {', '.join(named)}.")
    parts.append(
        "A gap is a difference of means, positive if the arm is worse; ± is half of a 95% "
        "interval. A slope is a line through the gaps over the logarithm; shrinks and grows are "
        "certain even among 40 such slopes. Arms with a run that failed or diverged are left out "
        "there."
    )
    if any(_has_shares(trend) for trend in found.tasks):
        parts.append(
            "A gap that shrinks in the score need not shrink in compute: the last column says so."
        )
    return parts


def _of_task(trend: TaskTrend, against: str) -> list[str]:
    heads = ["", *(_place(trend, place) for place in trend.places)]
    heads += [f"ten times the {_axis(trend, axis)}" for axis in trend.axes]
    shares = _has_shares(trend)
    heads += [f"{against} is there after"] * shares
    rows = [[against, *(number(trend.baseline[place], 3) for place in trend.places)]]
    for arm in trend.arms:
        row = [arm.arm]
        row += [_sum(arm.gaps[place]) if place in arm.gaps else "" for place in trend.places]
        row += [_slope(arm, axis) for axis in trend.axes]
        row += [_share(trend, arm)] * shares
        rows.append(row)
    rows[0] += [""] * (len(heads) - len(rows[0]))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]
    answers = [_sentence(trend, axis, against) for axis in trend.axes]
    metric = metric_text(trend.metric)
    return [f"{trend.task}, {metric}. {' '.join(answers)}", "", *table]


def _has_shares(trend: TaskTrend) -> bool:
    return any(value is not None for arm in trend.arms for value in arm.share.values())


def _sentence(trend: TaskTrend, axis: Axis, against: str) -> str:
    """The arms by what their gap does."""
    by_word: dict[str | None, list[str]] = {}
    for arm in trend.arms:
        said = f"{arm.arm} (no attention)" if arm.arm == FLOOR else arm.arm
        by_word.setdefault(arm.verdict(axis), []).append(said)
    said = [f"{word}: {arms_text(by_word[word])}" for word in WORDS if word in by_word]
    if None in by_word:
        said.append(f"not decided: {arms_text(by_word[None])}")
    values = [getattr(place, axis) for place in trend.places]
    times = max(values) / min(values)
    # A slope is for ten times as much, whatever was run.
    extrapolated = "" if times >= 9.5 else f" (extrapolated from {times:.2g} times)"
    return (
        f"With ten times the {_axis(trend, axis)}{extrapolated} the gap to `{against}` "
        f"{'; '.join(said)}."
        if len(said) > 1 or None not in by_word
        else f"Whether a gap to `{against}` changes with the {_axis(trend, axis)} is not decided."
    )


def _axis(trend: TaskTrend, axis: Axis) -> str:
    return "steps" if axis == "tokens" and trend.one_length else axis


def _place(trend: TaskTrend, place: Place) -> str:
    parts: list[str] = []
    if "tokens" in trend.axes:
        parts.append(
            f"{place.steps:,} steps" if trend.one_length else f"{count_text(place.tokens)} tokens"
        )
    if "parameters" in trend.axes:
        parts.append(f"{count_text(place.parameters)}")
    return ", ".join(parts)


def _sum(found: Sum) -> str:
    return f"{signed(found.value, 3)} ±{number(found.half, 3)}"


def _slope(arm: ArmTrend, axis: Axis) -> str:
    slope = arm.slopes.get(axis)
    if slope is None:
        return ""
    words = arm.verdict(axis)
    return f"{_sum(slope)}, {p_text(slope.p)}{f': {words}' if words else ''}"


def _share(trend: TaskTrend, arm: ArmTrend) -> str:
    """The baseline's share of the budget, at each place from which it can be told."""
    told = [(place, value) for place, value in arm.share.items() if value is not None]
    return ", ".join(f"{share(value)} of {_place(trend, place)}" for place, value in told)


def document(found: Trends) -> dict[str, Any]:
    """The trends as JSON values."""
    return {
        "tasks": [
            {
                "task": trend.task,
                "metric": trend.metric.name,
                "axes": list(trend.axes),
                "places": [_values(place) for place in trend.places],
                "baseline": list(trend.baseline.values()),
                "arms": {
                    arm.arm: {
                        "gaps": [
                            {**_values(place), **_interval(gap), "share": arm.share[place]}
                            for place, gap in arm.gaps.items()
                        ],
                        "slopes": {
                            axis: {**_interval(slope), "verdict": arm.verdict(axis)}
                            for axis, slope in arm.slopes.items()
                        },
                    }
                    for arm in trend.arms
                },
            }
            for trend in found.tasks
        ],
        "left_out": dict(found.left_out),
    }


def _values(place: Place) -> dict[str, int]:
    return {"steps": place.steps, "tokens": place.tokens, "parameters": place.parameters}


def _interval(found: Sum) -> dict[str, float]:
    half = found.half
    return {
        "value": found.value,
        "low": found.value - half,
        "high": found.value + half,
        "p": found.p,
    }


def figure(trend: TaskTrend, against: str, floor: str) -> str:
    """The gaps with their intervals as an SVG file, without that of no attention.

    Over the size if it differs, with the longest budget of each; over the budget otherwise.
    """
    axis: Axis = "parameters" if "parameters" in trend.axes else "tokens"
    longest = {getattr(place, axis): place for place in sorted(trend.places)}
    arms = {
        arm.arm: {at: arm.gaps[place] for at, place in longest.items() if place in arm.gaps}
        for arm in trend.arms
        if arm.arm != floor
    }
    arms = {arm: gaps for arm, gaps in arms.items() if gaps}
    ends = [
        each.value + side * each.half
        for gaps in arms.values()
        for each in gaps.values()
        for side in (-1, 1)
    ]
    low, high = padded_range([0.0, *ends])
    first, last = (math.log(edge(longest)) for edge in (min, max))
    along, y = scale(first, last, LEFT + 14, WIDTH - RIGHT), scale(low, high, HEIGHT - BOTTOM, TOP)
    metric = metric_text(trend.metric)
    parts = [
        tag("rect", width=WIDTH, height=HEIGHT, fill="#ffffff"),
        text(LEFT, 18, f"What each arm loses against {against} on {trend.task}", "title"),
        text(LEFT, 34, f"{metric}; bars: 95% intervals; below 0 an arm is better", "tick"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"{_axis(trend, axis)}, logarithmic", "tick"),
    ]
    values = ticks(low, high, 6)
    for value in values:
        if low <= value <= high:
            ends_at, height = f"{WIDTH - RIGHT:.1f}", f"{y(value):.1f}"
            kind = "grid" if abs(value) > 1e-9 else "zero"
            parts.append(tag("line", x1=LEFT, x2=ends_at, y1=height, y2=height, class_=kind))
            parts.append(
                text(LEFT - 8, y(value) + 4, number(value, places_of(values)), "tick", "end")
            )
    for at, place in longest.items():
        label = f"{place.steps:,}" if _axis(trend, axis) == "steps" else count_text(at)
        parts.append(text(along(math.log(at)), HEIGHT - BOTTOM + 18, label, "tick", "middle"))
    ends_of = {arm: y(gaps[max(gaps)].value) for arm, gaps in arms.items()}
    labels = apart(ends_of, LABEL_HEIGHT)
    for hue, (arm, gaps) in zip(cycle(HUES), arms.items(), strict=False):
        points = [(along(math.log(at)), gap) for at, gap in gaps.items()]
        path = "M" + "L".join(f"{x:.1f} {y(gap.value):.1f}" for x, gap in points)
        path += "".join(
            f"M{x:.1f} {y(gap.value - gap.half):.1f}V{y(gap.value + gap.half):.1f}"
            for x, gap in points
        )
        dots = [
            tag("circle", cx=f"{x:.1f}", cy=f"{y(gap.value):.1f}", r=3, fill="currentColor")
            for x, gap in points
        ]
        line = tag("path", d=path, class_="line")
        label = text(WIDTH - RIGHT + 8, labels[arm] + 4, arm, "arm")
        parts.append(tag("g", Markup("").join([line, *dots, label]), color=hue))
    whole = tag(
        "svg",
        tag("title", f"Gaps to {against} on {trend.task}")
        + tag("style", STYLE)
        + Markup("").join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )
    return f"{whole}\n"
