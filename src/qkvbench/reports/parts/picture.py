"""Quality against cost, the picture of a study: each task against each cost, at several sizes.

A `Picture` has the place of everything. `svg` draws it here, and the page's script draws the same
numbers when the reader chooses another task or cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports.parts.formatting import metric_text, number
from qkvbench.reports.parts.labels import Font, Label, labels
from qkvbench.reports.parts.svg import padded_range, places_of, scale, tag, text, ticks
from qkvbench.reports.parts.table import SYMBOLS, TONES, Tone
from qkvbench.results.across import CostKind
from qkvbench.results.dominance import ParetoPlace
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView, View


@dataclass(frozen=True)
class Size:
    """The size of a picture and of its letters: in pixels on the page, in points on paper."""

    width: float
    height: float
    letters: float


WIDE, PHONE = Size(760, 408, 12), Size(358, 330, 11)
# The column of a paper in two columns, and its whole width.
COLUMN, PAGE = Size(3.3 * 72, 2.5 * 72, 7), Size(7 * 72, 3.4 * 72, 8)

LEGEND = (
    "A bar is the 95% interval of the difference to the baseline (diamond and line): if it "
    "crosses the line, the two are not told apart. If seeds are counted, it is the exact interval "
    "of their proportion. Filled: on the frontier, which a step line "
    "joins. Small: dominated by an arm that costs no more. Hollow: not decided. ▼ ▲ worse and "
    "better for certain, ▽ △ likely; ≈ ~ within the margin."
)


@dataclass(frozen=True)
class Axis:
    """One cost: its name for the reader, a value as text, and whether its scale is logarithmic."""

    name: str
    text: Callable[[float], str]
    logarithmic: bool


AXES: dict[CostKind, Axis] = {
    "cache": Axis("cache per token", bytes_text, logarithmic=True),
    "parameters": Axis("parameters", count_text, logarithmic=False),
    "latency": Axis("decode step", seconds_text, logarithmic=True),
}


@dataclass(frozen=True)
class Point:
    """One arm on one task: its quality, the ends of its bar, its cost and its Pareto place."""

    arm: str
    order: int
    cost: float
    value: float
    low: float | None
    high: float | None
    tone: Tone
    symbol: str
    place: ParetoPlace | None


@dataclass(frozen=True)
class Mark:
    """The place of an arm in the picture; `low` and `high` are the ends of its bar."""

    point: Point
    x: float
    y: float
    low: float | None
    high: float | None
    label: Label | None

    @property
    def kind(self) -> str:
        """Its classes: the tone of its verdict, and whether it is on the frontier or dominated."""
        outlook = self.point.place.outlook if self.point.place else "not decided"
        place = {"on the frontier": " front", "dominated": " behind", "likely dominated": " behind"}
        base = " reference" if self.point.order == 0 else ""
        return f"{self.point.tone}{place.get(outlook, '')}{base}"


@dataclass(frozen=True)
class Picture:
    """Everything that is drawn, with its place. Ticks are positions with their texts.

    ``base`` is the height of the baseline, ``front`` the path of the frontier.
    """

    size: Size
    title: str
    quality: str
    cost: str
    left: float
    right: float
    top: float
    bottom: float
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    base: float | None
    front: str
    marks: tuple[Mark, ...]


def costs(view: View, task: TaskView, kind: CostKind) -> dict[str, float]:
    """The cost of each arm on the task; a decode step is that of the model that was measured."""
    if kind == "latency":
        steps = {arm: each.decode_p50_s for arm, each in view.measurements.items()}
        return {arm: step for arm, step in steps.items() if step}
    if kind == "parameters":
        return {arm: float(cost.total_parameters) for arm, cost in task.costs.items()}
    cache = {arm: cost.cache_bytes_per_token for arm, cost in task.costs.items()}
    known = {arm: float(size) for arm, size in cache.items() if size is not None}
    return known if task.causal and any(known.values()) else {}


def points(view: View, task: TaskView, kind: CostKind) -> list[Point]:
    """The arms that have a score and this cost."""
    by_arm = costs(view, task, kind)
    front = next((each.places for each in task.fronts if each.cost == kind), {})
    found = task.verdicts
    made: list[Point] = []
    for order, cell in enumerate(task.cells):
        arm = cell.variant
        quality = _quality(task.result, arm)
        if arm not in by_arm or quality is None:
            continue
        verdict = found.get(arm, "not distinguishable")
        tone = TONES.get(verdict, "quiet")
        symbol = SYMBOLS.get(verdict, "") if order else ""
        place = front.get(arm)
        made.append(Point(arm, order, by_arm[arm], *quality, tone, symbol, place))
    return made


def _quality(
    result: Comparison | Tally, arm: str
) -> tuple[float, float | None, float | None] | None:
    """The value of an arm and the ends of its bar."""
    match result:
        case Comparison(means=means, differences=differences):
            if arm not in means:
                return None
            value, each = means[arm].value, differences.get(arm)
            if each is None or each.low is None or each.high is None:
                return value, None, None
            # The interval of the difference, centred on the arm: it crosses the baseline's line if
            # the difference may be zero.
            return value, value + each.low - each.value, value + each.high - each.value
        case Tally(counts=counts):
            if arm not in counts:
                return None
            count = counts[arm]
            return count.solved / count.seeds, count.low, count.high


def picture(view: View, task: TaskView, kind: CostKind, size: Size) -> Picture | None:
    """The task against this cost; None if no arm has both."""
    own = points(view, task, kind)
    if not own:
        return None
    axis, letters = AXES[kind], size.letters
    top, bottom = 2.3 * letters, size.height - 3.2 * letters
    low, high, marks_y = _quality_ticks(task, own)
    left = letters * (1.4 + 0.62 * max(len(each) for _, each in marks_y))
    right = size.width - 0.5 * letters
    y = scale(low, high, bottom, top)
    x = _cost_scale(axis, own, left + 0.11 * (right - left), right - 0.13 * (right - left))
    xs = _dodged(own, x, letters)
    bare = [
        Mark(
            point,
            place,
            y(point.value),
            None if point.low is None else y(point.low),
            None if point.high is None else y(point.high),
            None,
        )
        for point, place in zip(own, xs, strict=True)
    ]
    front = sorted((mark for mark in bare if " front" in mark.kind), key=lambda mark: mark.x)
    level = next((mark.y for mark in bare if mark.point.order == 0), None)
    lines = _lines(bare, front, level, (left, right))
    of = f" in the model of {view.label(view.cost_task or '')}" if kind == "latency" else ""
    return Picture(
        size=size,
        title=f"{task.label}: {metric_text(task.metric)} against {axis.name}",
        quality=_quality_name(task),
        cost=f"{axis.name}{of} (← less)",
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        y_ticks=tuple((y(value), each) for value, each in marks_y),
        x_ticks=_cost_ticks(axis, own, x, 0.62 * letters),
        base=level,
        front="".join(
            f"{'H' if index else 'M'}{mark.x:.0f}{'V' if index else ' '}{mark.y:.0f}"
            for index, mark in enumerate(front)
        )
        + (f"H{right:.0f}" if front else ""),
        marks=tuple(_labelled(bare, lines, (left + 2, top - letters, right, bottom), letters)),
    )


def drawing(parts: Sequence[Markup], size: Size) -> Markup:
    """An SVG element of this size with these parts."""
    return tag(
        "svg",
        Markup("").join(parts),
        class_="picture",
        viewBox=f"0 0 {size.width:.0f} {size.height:.0f}",
        font_size=size.letters,
        role="img",
    )


def svg(made: Picture) -> Markup:
    """The picture as an SVG element."""
    letters, left, right = made.size.letters, made.left, made.right
    parts = [tag("title", made.title), tag("desc", LEGEND)]
    parts.append(text(left, letters, made.quality, "axis"))
    parts.append(text(right, made.size.height - 0.4 * letters, made.cost, "axis", "end"))
    for y, each in made.y_ticks:
        line = f"M{left:.0f} {y:.1f}H{right:.0f}"
        label = text(left - 0.5 * letters, y + 0.34 * letters, each, "tick", "end")
        parts += [tag("path", d=line, class_="grid"), label]
    for x, each in made.x_ticks:
        label = text(x, made.bottom + 1.35 * letters, each, "tick", "middle")
        stem = tag("path", d=f"M{x:.1f} {made.bottom:.1f}v4", class_="grid")
        parts += [stem, label]
    if made.base is not None:
        line = f"M{left:.0f} {made.base:.1f}H{right:.0f}"
        parts.append(tag("path", d=line, class_="level"))
    parts.append(tag("path", d=made.front, class_="frontier"))
    parts += [_mark(mark, letters) for mark in made.marks]
    return drawing(parts, made.size)


def numbers(made: Picture) -> dict[str, object]:
    """The picture as JSON values, for the page's script; positions are rounded to half pixels."""
    return {
        "title": made.title,
        "quality": made.quality,
        "cost": made.cost,
        "box": [_half(each) for each in (made.left, made.right, made.top, made.bottom)],
        "y": [[_half(y), each] for y, each in made.y_ticks],
        "x": [[_half(x), each] for x, each in made.x_ticks],
        "base": _half(made.base),
        "front": made.front,
        "marks": [
            [
                mark.point.order,
                mark.kind,
                *(_half(each) for each in (mark.x, mark.y, mark.low, mark.high)),
                *_label_numbers(mark),
            ]
            for mark in made.marks
        ],
    }


def _label_numbers(mark: Mark) -> list[object]:
    label = mark.label
    if label is None:
        return []
    at = [_half(label.x - mark.x), _half(label.y - mark.y)]
    return [mark.point.symbol + mark.point.arm, *at, label.anchor, int(label.leader)]


def _half(value: float | None) -> float | int | None:
    if value is None:
        return None
    rounded = round(2 * value) / 2
    return int(rounded) if rounded == int(rounded) else rounded


def _quality_name(task: TaskView) -> str:
    if isinstance(task.result, Tally):
        return f"seeds of {len(task.result.seeds)} that solved {task.label} (↑ better)"
    arrow = "↑" if task.metric.better == "higher" else "↓"
    return f"{metric_text(task.metric)} on {task.label} ({arrow} better)"


def _quality_ticks(
    task: TaskView, own: Sequence[Point]
) -> tuple[float, float, list[tuple[float, str]]]:
    """The range of the vertical axis and its ticks."""
    if isinstance(task.result, Tally):
        seeds = len(task.result.seeds)
        step = max(1, seeds // 5)
        return -0.04, 1.04, [(n / seeds, str(n)) for n in range(0, seeds + 1, step)]
    ends = [end for each in own for end in (each.value, each.low, each.high) if end is not None]
    low, high = padded_range(ends)
    values = ticks(low, high, 6)
    shown = [value for value in values if low <= value <= high]
    return low, high, [(value, number(value, places_of(values))) for value in shown]


def _cost_scale(
    axis: Axis, own: Sequence[Point], start: float, end: float
) -> Callable[[float], float]:
    """The place of a cost. On a logarithmic axis zero lies one octave below the least cost."""
    values = sorted({point.cost for point in own})
    if not axis.logarithmic:
        return scale(values[0], values[-1], start, end)
    least = min((value for value in values if value > 0), default=1.0)

    def octave(value: float) -> float:
        return math.log2(value if value > 0 else least / 2)

    place = scale(octave(values[0]), octave(values[-1]), start, end)
    return lambda value: place(octave(value))


def _cost_ticks(
    axis: Axis, own: Sequence[Point], x: Callable[[float], float], width: float
) -> tuple[tuple[float, str], ...]:
    """The costs whose texts do not overlap, with their places; the baseline's first of all."""
    base = [point.cost for point in own if point.order == 0]
    shown: list[tuple[float, str]] = []
    for value in dict.fromkeys([*base, *sorted({point.cost for point in own})]):
        label = axis.text(value)
        room = width * (len(label) + 1.5)
        if all(abs(x(value) - place) > room for place, _ in shown):
            shown.append((x(value), label))
    return tuple(sorted(shown))


def _dodged(own: Sequence[Point], x: Callable[[float], float], letters: float) -> list[float]:
    """The place of each point; points of equal cost are dodged so that no bar hides another."""
    places: list[float] = []
    for point in own:
        column = [each for each in own if each.cost == point.cost]
        away = min(0.95, 20 / len(column)) * letters
        places.append(x(point.cost) + away * (column.index(point) - (len(column) - 1) / 2))
    return places


def _lines(
    marks: Sequence[Mark], front: Sequence[Mark], level: float | None, ends: tuple[float, float]
) -> list[tuple[float, float, float, float]]:
    """Boxes of the bars, the frontier and the baseline's level: labels avoid them."""
    bars = [
        (m.x - 1, m.high, m.x + 1, m.low) for m in marks if m.low is not None and m.high is not None
    ]
    steps = [
        (one.x, one.y - 1, other, one.y + 1)
        for one, other in zip(front, [*(m.x for m in front[1:]), ends[1]], strict=False)
    ]
    return [*bars, *steps, *([] if level is None else [(ends[0], level - 1, ends[1], level + 1)])]


def _labelled(
    marks: Sequence[Mark],
    lines: Sequence[tuple[float, float, float, float]],
    area: tuple[float, float, float, float],
    letters: float,
) -> list[Mark]:
    """The marks with labels: those on the frontier have the first choice of a place."""
    ranked = sorted(marks, key=lambda m: (m.point.order != 0, " front" not in m.kind, m.y))
    placed = labels(
        {m.point.arm: (m.x, m.y) for m in ranked},
        {m.point.arm: m.point.symbol + m.point.arm for m in marks},
        lines,
        area,
        Font(width=0.565 * letters, height=1.1 * letters),
    )
    return [replace(mark, label=placed.get(mark.point.arm)) for mark in marks]


def _mark(mark: Mark, letters: float) -> Markup:
    point = mark.point
    parts: list[Markup] = []
    if mark.low is not None and mark.high is not None:
        low, high = mark.low - mark.y, mark.high - mark.y
        cap = 0.25 * letters
        caps = "".join(f"M{-cap:.1f} {end:.1f}h{2 * cap:.1f}" for end in (low, high))
        parts.append(tag("path", d=f"M0 {low:.1f}V{high:.1f}{caps}", class_="bar"))
    label = mark.label
    if label is not None and label.leader:
        line = f"M0 0L{label.x - mark.x:.1f} {label.y - mark.y:.1f}"
        parts.append(tag("path", d=line, class_="leader"))
    parts.append(tag("path", d=shape(mark, letters), class_="dot"))
    if label is not None:
        x, y = label.x - mark.x, label.y - mark.y + 0.32 * letters
        parts.append(text(x, y, point.symbol + point.arm, "label", label.anchor))
    return tag(
        "g",
        Markup("").join(parts),
        class_=f"mark {mark.kind}",
        transform=f"translate({mark.x:.1f} {mark.y:.1f})",
        data_arm=point.order,
    )


def shape(mark: Mark, letters: float) -> str:
    """The path of a point around the origin: a diamond for the baseline, a disc for the others."""
    if mark.point.order == 0:
        wide = f"{0.54 * letters:.1f}"
        return f"M0 -{wide}L{wide} 0L0 {wide}L-{wide} 0Z"
    radius = (0.27 if " behind" in mark.kind else 0.4) * letters
    r, diameter = f"{radius:.1f}", f"{2 * radius:.1f}"
    return f"M-{r} 0a{r} {r} 0 1 0 {diameter} 0a{r} {r} 0 1 0 -{diameter} 0Z"


def default_choice(view: View) -> tuple[TaskView, CostKind] | None:
    """The task and the cost that are shown first: those on which most can be said."""

    def decided(task: TaskView) -> int:
        found = task.verdicts.values()
        return sum(verdict not in ("not distinguishable", "likely not worse") for verdict in found)

    for kind in AXES:
        shown = [task for task in view.tasks if points(view, task, kind)]
        if shown:
            compared = [task for task in shown if isinstance(task.result, Comparison)]
            return max(compared or shown, key=decided), kind
    return None
