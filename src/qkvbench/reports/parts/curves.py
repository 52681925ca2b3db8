"""Learning curves as inline SVG, coloured by the style sheet of the page, dark or light."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from qkvbench.reports.parts.formatting import metric_text, number
from qkvbench.reports.parts.svg import (
    color_class,
    padded_range,
    places_of,
    scale,
    tag,
    text,
    ticks,
)
from qkvbench.results.stats import Tally
from qkvbench.results.view import TaskView

# All in the SVG's own units, which are pixels at the page's full width.
WIDTH, HEIGHT = 560, 350
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 44
LABEL_WIDTH, LABEL_HEIGHT = 6.3, 13.0

Curve = list[tuple[int, float]]


def curves(task: TaskView) -> Markup | None:
    """The validation metric by step, each arm's mean over its seeds; None without a curve.

    If solved seeds are counted, each seed is a thin line too, because a mean of solved and unsolved
    runs is like none of them.
    """
    name = task.metric.name
    singles = [
        (order, [(point.step, point.metrics[name]) for point in run.curve if name in point.metrics])
        for order, cell in enumerate(task.cells)
        for run in cell.runs
        if run.status == "done"
    ]
    singles = [(order, line) for order, line in singles if line]
    if not singles:
        return None
    means = {order: _mean_curve(singles, order) for order in dict.fromkeys(o for o, _ in singles)}
    thin = singles if isinstance(task.result, Tally) else []
    lines = [*means.values(), *(line for _, line in thin)]
    last = max(step for line in lines for step, _ in line)
    bottom, top = padded_range(
        [value for line in lines for step, value in line if step >= last / 4]
    )
    label_room = 6 + LABEL_WIDTH * max(len(task.cells[order].variant) for order in means)
    right = WIDTH - RIGHT - label_room
    x, y = scale(0, last, LEFT, right), scale(bottom, top, HEIGHT - BOTTOM, TOP)

    parts = _frame(task, bottom, top, right)
    parts += [_tick_x(x(step), f"{step:,.0f}") for step in ticks(0, last, 5) if step <= last]
    parts.append(text(right, HEIGHT - 8, "training step", "axis", "end"))
    paths = [_line([(x(s), y(v)) for s, v in line], order, "single") for order, line in thin]
    ends = _spread({order: y(line[-1][1]) for order, line in means.items()})
    for order, line in reversed(means.items()):
        arm = task.cells[order].variant
        path = _line([(x(s), y(v)) for s, v in line], order, "mean")
        end_x, end_y = x(line[-1][0]), y(line[-1][1])
        leader = tag(
            "path", d=f"M{end_x:.1f} {end_y:.1f}L{right + 5:.1f} {ends[order]:.1f}", class_="leader"
        )
        label = text(right + 7, ends[order] + 4, arm, "label hue")
        paths.append(_group(order, f"{arm}: {number(line[-1][1], 4)}", path))
        parts.append(_group(order, arm, leader, label))
    # A nested svg clips its content without an id, which would have to be unique in the page.
    width, height = right - LEFT + 3, HEIGHT - TOP - BOTTOM + 2
    parts.append(
        tag(
            "svg",
            Markup("").join(paths),
            x=LEFT,
            y=TOP - 1,
            width=width,
            height=height,
            viewBox=f"{LEFT} {TOP - 1} {width} {height}",
        )
    )
    title = tag("title", f"Learning curves on {task.label}")
    return tag("svg", title + Markup("").join(parts), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def _mean_curve(singles: Sequence[tuple[int, Curve]], order: int) -> Curve:
    """The mean over the seeds of one arm, at the steps that all of them have."""
    lines = [dict(line) for index, line in singles if index == order]
    steps = sorted(set[int](lines[0]).intersection(*lines))
    return [(step, sum(line[step] for line in lines) / len(lines)) for step in steps]


def _spread(positions: Mapping[int, float]) -> dict[int, float]:
    """The heights, moved down or up until no two labels overlap."""
    ordered = sorted(positions, key=lambda order: positions[order])
    moved = dict(positions)
    for above, below in pairwise(ordered):
        moved[below] = max(moved[below], moved[above] + LABEL_HEIGHT)
    limit = float(HEIGHT - BOTTOM - 2)
    for order in reversed(ordered):
        moved[order] = min(moved[order], limit)
        limit = moved[order] - LABEL_HEIGHT
    return moved


def _frame(task: TaskView, bottom: float, top: float, right: float) -> list[Markup]:
    """The grid, and the ticks and the label of the vertical axis."""
    y = scale(bottom, top, HEIGHT - BOTTOM, TOP)
    better = "↑" if task.metric.better == "higher" else "↓"
    parts = [text(LEFT, TOP - 14, f"{metric_text(task.metric)} ({better} better)", "axis")]
    values = ticks(bottom, top, 6)
    for value in values:
        if bottom <= value <= top:
            height = f"{y(value):.1f}"
            line = tag("line", x1=LEFT, x2=f"{right:.1f}", y1=height, y2=height, class_="grid")
            label = text(LEFT - 8, y(value) + 4, number(value, places_of(values)), "tick", "end")
            parts += [line, label]
    return parts


def _tick_x(x: float, label: str) -> Markup:
    base = HEIGHT - BOTTOM
    return tag("path", d=f"M{x:.1f} {base}v4", class_="grid") + text(
        x, base + 17, label, "tick", "middle"
    )


def _line(points: Sequence[tuple[float, float]], order: int, kind: str) -> Markup:
    if len(points) == 1:
        x, y = points[0]
        return tag(
            "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, class_=f"dot {color_class(order)}"
        )
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=path, class_=f"{kind} {color_class(order)}")


def _group(order: int, title: str, *parts: Markup) -> Markup:
    inside = tag("title", title) + Markup("").join(parts)
    return tag("g", inside, class_=f"arm {color_class(order)}")
