"""The report's plots as inline SVG, coloured by the style sheet of the page, dark or light."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from qkvbench.cost.units import bytes_text, count_text
from qkvbench.reports.parts.formatting import decimals, metric_text, number
from qkvbench.results.record import Cost
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView

# All in the SVG's own units, which are pixels at the page's full width.
WIDTH, HEIGHT = 560, 350
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 44
LABEL_WIDTH, LABEL_HEIGHT = 6.3, 13.0
COLORS = 8


@dataclass(frozen=True)
class PlotPoint:
    """One arm in a plot of quality against cost; `low` and `high` are the ends of its bar."""

    arm: str
    order: int
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Box:
    """A rectangle that is occupied by a label or a point."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two intersect."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def against_cache(task: TaskView) -> Markup | None:
    """Quality against cache bytes per token; None for a model that has no cache.

    An arm that caches nothing has no place on an axis of powers of two.
    """
    sizes = {
        arm: float(cost.cache_bytes_per_token)
        for arm, cost in task.costs.items()
        if cost.cache_bytes_per_token
    }
    if not task.causal or not sizes:
        return None
    return _tradeoff(task, sizes, "cache per token, all layers", bytes_text, math.log2)


def against_parameters(task: TaskView) -> Markup | None:
    """Quality against all parameters; None if no arm has a score."""
    return _tradeoff(task, _parameters(task.costs), "parameters", count_text, float)


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
    bottom, top = _padded_range(
        [value for line in lines for step, value in line if step >= last / 4]
    )
    label_room = 6 + LABEL_WIDTH * max(len(task.cells[order].variant) for order in means)
    right = WIDTH - RIGHT - label_room

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * step / last

    y = _scale(bottom, top)
    parts = _frame(task, bottom, top, right)
    parts += [_tick_x(x(step), f"{step:,.0f}") for step in _ticks(0, last, 5) if step <= last]
    parts.append(_text(WIDTH - RIGHT - label_room, HEIGHT - 8, "training step", "axis", "end"))
    paths = [_line([(x(s), y(v)) for s, v in line], order, "single") for order, line in thin]
    ends = _spread({order: y(line[-1][1]) for order, line in means.items()})
    for order, line in reversed(means.items()):
        arm = task.cells[order].variant
        path = _line([(x(s), y(v)) for s, v in line], order, "mean")
        end_x, end_y = x(line[-1][0]), y(line[-1][1])
        leader = _tag(
            "path", d=f"M{end_x:.1f} {end_y:.1f}L{right + 5:.1f} {ends[order]:.1f}", class_="leader"
        )
        label = _text(right + 7, ends[order] + 4, arm, "label hue")
        paths.append(_group(order, arm, f"{arm}: {number(line[-1][1], 4)}", path))
        parts.append(_group(order, arm, arm, leader, label))
    # A nested svg clips its content without an id, which would have to be unique in the page.
    width, height = right - LEFT + 3, HEIGHT - TOP - BOTTOM + 2
    parts.append(
        _tag(
            "svg",
            Markup("").join(paths),
            x=LEFT,
            y=TOP - 1,
            width=width,
            height=height,
            viewBox=f"{LEFT} {TOP - 1} {width} {height}",
        )
    )
    return _svg(f"Learning curves on {task.name}", parts)


def _tradeoff(
    task: TaskView,
    costs: Mapping[str, float],
    axis: str,
    text: Callable[[float], str],
    transform: Callable[[float], float],
) -> Markup | None:
    points = _points(task, costs)
    if not points:
        return None
    right = WIDTH - RIGHT
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    bottom, top = (-0.04, 1.04) if isinstance(task.result, Tally) else _padded_range(ends)
    y = _scale(bottom, top)
    values = sorted({point.x for point in points})
    first, last = transform(values[0]), transform(values[-1])
    inner_left, inner_right = LEFT + 64, right - 72

    def x(value: float) -> float:
        if first == last:
            return (inner_left + inner_right) / 2
        return inner_left + (inner_right - inner_left) * (transform(value) - first) / (last - first)

    parts = _frame(task, bottom, top, right)
    parts += [_tick_x(position, text(value)) for value, position in _spaced(values, x)]
    parts.append(_text(right, HEIGHT - 8, f"{axis} (← less)", "axis", "end"))
    base = next((point for point in points if point.order == 0), None)
    if base is not None:
        parts.append(
            _tag(
                "line",
                x1=LEFT,
                x2=right,
                y1=f"{y(base.y):.1f}",
                y2=f"{y(base.y):.1f}",
                class_="base",
            )
        )
    positions = _dodge(points, x, y)
    bars = [
        Box(positions[point.arm][0] - 2, y(point.high), positions[point.arm][0] + 2, y(point.low))
        for point in points
        if point.low is not None and point.high is not None
    ]
    labels = _labels(points, positions, bars, Box(LEFT + 2, TOP - 4, right, HEIGHT - BOTTOM))
    for point in points:
        px, py = positions[point.arm]
        parts.append(_point_svg(task, point, (px, py), labels[point.arm], y))
    return _svg(f"{task.name}: {metric_text(task.metric)} against {axis}", parts)


def _points(task: TaskView, costs: Mapping[str, float]) -> list[PlotPoint]:
    points: list[PlotPoint] = []
    for order, cell in enumerate(task.cells):
        arm = cell.variant
        if arm not in costs:
            continue
        match task.result:
            case Comparison(means=means, differences=differences):
                if arm not in means:
                    continue
                value, each = means[arm].value, differences.get(arm)
                low = high = None
                if each is not None and each.low is not None and each.high is not None:
                    # The interval of the difference, centred on the arm: it crosses the
                    # baseline's line if the difference may be zero.
                    low, high = value + each.low - each.value, value + each.high - each.value
                points.append(PlotPoint(arm, order, costs[arm], value, low, high))
            case Tally(counts=counts):
                if arm not in counts:
                    continue
                count = counts[arm]
                solved = count.solved / count.seeds
                points.append(PlotPoint(arm, order, costs[arm], solved, count.low, count.high))
    return points


def _point_svg(
    task: TaskView,
    point: PlotPoint,
    position: tuple[float, float],
    label: tuple[float, float, str],
    y: Callable[[float], float],
) -> Markup:
    px, py = position
    lx, ly, anchor = label
    parts: list[Markup] = []
    if point.low is not None and point.high is not None:
        ends = f"M{px:.1f} {y(point.low):.1f}V{y(point.high):.1f}"
        caps = "".join(f"M{px - 3:.1f} {y(end):.1f}h6" for end in (point.low, point.high))
        parts.append(_tag("path", d=ends + caps, class_="bar"))
    if abs(ly - py) > LABEL_HEIGHT / 2 or abs(lx - px) > 12:
        near = lx - 2 if anchor == "start" else lx + 2
        parts.append(_tag("path", d=f"M{px:.1f} {py:.1f}L{near:.1f} {ly:.1f}", class_="leader"))
    if point.order == 0:
        parts.append(
            _tag(
                "rect",
                x=f"{px - 5:.1f}",
                y=f"{py - 5:.1f}",
                width=10,
                height=10,
                transform=f"rotate(45 {px:.1f} {py:.1f})",
                class_="dot",
            )
        )
    else:
        parts.append(_tag("circle", cx=f"{px:.1f}", cy=f"{py:.1f}", r=4.5, class_="dot"))
    parts.append(_text(lx, ly + 4, point.arm, "label hue", anchor))
    places = 2 if isinstance(task.result, Tally) else decimals(task.result)
    return _group(point.order, point.arm, f"{point.arm}: {number(point.y, places)}", *parts)


def _dodge(
    points: Sequence[PlotPoint], x: Callable[[float], float], y: Callable[[float], float]
) -> dict[str, tuple[float, float]]:
    """The position of each point; points of equal cost are dodged so that no bar hides another."""
    positions: dict[str, tuple[float, float]] = {}
    for value in {point.x: None for point in points}:
        column = [point for point in points if point.x == value]
        for index, point in enumerate(column):
            positions[point.arm] = (x(value) + 11 * (index - (len(column) - 1) / 2), y(point.y))
    return positions


def _labels(
    points: Sequence[PlotPoint],
    positions: Mapping[str, tuple[float, float]],
    bars: Sequence[Box],
    area: Box,
) -> dict[str, tuple[float, float, str]]:
    """A free position for each name, as close to its point as possible: x, y and anchor."""
    dots = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in positions.values()]
    taken: list[Box] = []
    chosen: dict[str, tuple[float, float, str]] = {}
    for point in sorted(points, key=lambda point: (positions[point.arm][1], point.order)):
        px, py = positions[point.arm]
        candidates = list(_candidates(point.arm, px, py, area))
        free = [
            each for each in candidates if not any(each[3].overlaps(box) for box in (*dots, *taken))
        ]
        others = [box for box in dots if not box.overlaps(Box(px, py, px + 0.1, py + 0.1))]
        # A name on a bar, or with a leader across another point, is penalized.
        best = min(
            free or candidates,
            key=lambda each, px=px, py=py, others=others: (
                each[4]
                + 12 * sum(each[3].overlaps(bar) for bar in bars)
                + 40 * any(_crosses_box((px, py), each[:2], box) for box in others)
            ),
        )
        chosen[point.arm] = best[:3]
        taken.append(best[3])
    return chosen


def _crosses_box(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether the leader from a point to its name crosses a box."""
    steps = 8
    return any(
        box.left < start[0] + (end[0] - start[0]) * part / steps < box.right
        and box.top < start[1] + (end[1] - start[1]) * part / steps < box.bottom
        for part in range(steps + 1)
    )


def _candidates(
    arm: str, x: float, y: float, area: Box
) -> Iterable[tuple[float, float, str, Box, float]]:
    """Positions for a name: to the right and left, at several heights, each with its cost."""
    width = LABEL_WIDTH * len(arm)
    for step in range(-16, 17):
        for away in (9, 24, 42, 64):
            ly = y + step * LABEL_HEIGHT / 2
            distance = abs(step) * LABEL_HEIGHT / 2 + 0.7 * (away - 9)
            for anchor, left in (("start", x + away), ("end", x - away - width)):
                box = Box(left, ly - LABEL_HEIGHT / 2, left + width, ly + LABEL_HEIGHT / 2)
                inside = (
                    box.left >= area.left
                    and box.right <= area.right
                    and box.top >= area.top
                    and box.bottom <= area.bottom
                )
                # A name that is cut off is worse than one that is far away.
                cost = distance + (0 if anchor == "start" else 3) + (0 if inside else 1000)
                yield (x + away if anchor == "start" else x - away, ly, anchor, box, cost)


def _mean_curve(
    singles: Sequence[tuple[int, list[tuple[int, float]]]], order: int
) -> list[tuple[int, float]]:
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
    y = _scale(bottom, top)
    counted = isinstance(task.result, Tally) and (bottom, top) == (-0.04, 1.04)
    better = "↑" if counted or task.metric.better == "higher" else "↓"
    name = f"seeds solved of {len(task.result.seeds)}" if counted else metric_text(task.metric)
    parts = [_text(LEFT, TOP - 14, f"{name} ({better} better)", "axis")]
    if counted:
        seeds = len(task.result.seeds)
        ticks = [(count / seeds, str(count)) for count in range(seeds + 1)]
    else:
        steps = _ticks(bottom, top, 6)
        places = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
        ticks = [(value, number(value, places)) for value in steps if bottom <= value <= top]
    for value, text in ticks:
        height = f"{y(value):.1f}"
        parts.append(_tag("line", x1=LEFT, x2=f"{right:.1f}", y1=height, y2=height, class_="grid"))
        parts.append(_text(LEFT - 8, y(value) + 4, text, "tick", "end"))
    return parts


def _scale(bottom: float, top: float) -> Callable[[float], float]:
    return lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom)


def _padded_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some padding."""
    low, high = min(values), max(values)
    padding = 0.06 * (high - low) or 0.01 * max(1.0, abs(high))
    return low - padding, high + padding


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them inside."""
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _spaced(values: Sequence[float], x: Callable[[float], float]) -> list[tuple[float, float]]:
    """The values whose tick labels do not overlap, with their x."""
    ticks: list[tuple[float, float]] = []
    for value in values:
        if not ticks or x(value) - ticks[-1][1] > 52:
            ticks.append((value, x(value)))
    return ticks


def _parameters(costs: Mapping[str, Cost]) -> dict[str, float]:
    return {arm: float(cost.total_parameters) for arm, cost in costs.items()}


def _line(points: Sequence[tuple[float, float]], order: int, kind: str) -> Markup:
    if len(points) == 1:
        x, y = points[0]
        return _tag(
            "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, class_=f"dot {color_class(order)}"
        )
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return _tag("path", d=path, class_=f"{kind} {color_class(order)}")


def _tick_x(x: float, text: str) -> Markup:
    base = HEIGHT - BOTTOM
    tick = _tag("path", d=f"M{x:.1f} {base}v4", class_="grid")
    return tick + _text(x, base + 17, text, "tick", "middle")


def color_class(order: int) -> str:
    """The CSS classes of an arm: its colour, and dashes once the colours are used up."""
    if order == 0:
        return "baseline"
    dashes = " dashed" if order > COLORS else ""
    return f"h{(order - 1) % COLORS}{dashes}"


def _group(order: int, arm: str, title: str, *parts: Markup) -> Markup:
    inside = _tag("title", title) + Markup("").join(parts)
    return _tag("g", inside, class_=f"arm {color_class(order)}", data_arm=arm)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    return _tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    inside = _tag("title", title) + Markup("\n").join(parts)
    return _tag("svg", inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def _tag(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """One element; text and values are escaped; `class_` stands for class and `a_b` for a-b."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{text}>{escape(content)}</{name}>")
