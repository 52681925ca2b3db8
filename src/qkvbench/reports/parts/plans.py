"""Learned plans beside their rivals: losses against costs, and the choices of gates over time."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qkvbench.model import IN_TURN
from qkvbench.reports.parts.formatting import plural
from qkvbench.reports.parts.svg import color_class, places_of, scale, tag, text, ticks
from qkvbench.results.pruning import (
    ALONE,
    CONTINUED,
    LEARNED,
    PAIRS,
    PROGRAM,
    RANDOM,
    SCRATCH,
    Estimate,
    PruneResult,
    Snapshot,
)

_PARTS = Path(__file__).parent
_STYLES = ("_page.css", "_figure.css", "_plans.css")

Scale = Callable[[float], float]

# In the SVG's own units, which are pixels at the page's full width.
WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 30, 46
# Points of other ways to choose may lie far above; so many times the range of these two is shown.
SHOWN = 2.0
ASIDE = 3.0
PANEL_WIDTH, PANEL_HEIGHT, PANEL_GAP, PANEL_LEFT = 92, 62, 12, 62

# Families of arms, in the order of the key: those that are not named are simple rules.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "learned, with the weights of its gates": (LEARNED,),
    "learned plan, weights of before": (ALONE,),
    "learned plan, from scratch": (SCRATCH,),
    "integer program": (PROGRAM,),
    "integer program with pairs": (PAIRS,),
    "random": (RANDOM,),
}
RULES = "one option in some layers or all"
ORDER = (*FAMILIES, RULES)


@dataclass(frozen=True)
class Frontier:
    """Results that can stand in one figure: of one task, model, options and kind of cost."""

    title: str
    cost: str
    results: tuple[PruneResult, ...]


def page(results: Mapping[str, PruneResult]) -> str:
    """The page of these results by the names of their folders."""
    environment = Environment(
        loader=FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("plans.html").render(
        # Safe unescaped: the package's own files, not the text of a result.
        css=Markup("".join((_PARTS.parent / name).read_text(encoding="utf-8") for name in _STYLES)),
        results=results,
        frontiers=[(each, frontier(each)) for each in frontiers(list(results.values()))],
        key=[(color_class(number + 1), name) for number, name in enumerate(ORDER)],
        gates={name: gates(each) for name, each in results.items()},
        kept={name: _choices(each) for name, each in results.items()},
        colors={name: _colors(each) for name, each in results.items()},
        rows={name: _rows(each) for name, each in results.items()},
        plural=plural,
    )


def frontiers(results: Sequence[PruneResult]) -> list[Frontier]:
    """The figures of these results: one for each task, model, kind of cost and way to heal."""
    found: defaultdict[tuple[str, str], list[PruneResult]] = defaultdict(list)
    for each in results:
        quantity, _, bound = each.target.partition("=")
        _, at, tokens = bound.partition("@")
        taught = ", distilled" if each.distilled else ""
        options = " ".join(each.options)
        title = f"{each.task}, {each.model} of {plural(each.layers, 'layer')}, {options}{taught}"
        found[title, quantity + at + tokens].append(each)
    return [
        Frontier(title, cost, tuple(sorted(same, key=lambda each: each.share)))
        for (title, cost), same in found.items()
    ]


def frontier(shown: Frontier) -> Markup:
    """Loss above all layers as they are, against cost: every arm of every result."""
    points = [
        (_family(arm), arm, each.cost(arm), each.above(arm))
        for each in shown.results
        for arm in each.arms
        if arm != CONTINUED
    ]
    # By what has few and small losses: intervals of the others may be as wide as the page.
    main = [each for family, _, _, each in points if family in FAMILIES and family != RANDOM]
    low, high = min(0.0, *map(_low, main)), max(0.0, *map(_high, main))
    means = [value.mean for _, _, _, value in points]
    low, most = min(low, *means), max(means)
    high = max(high, min(most, low + SHOWN * (high - low))) or 1.0
    marks = ticks(low, high, 6)
    shares = [share for _, _, share, _ in points]
    x = scale(max(0.0, min(shares) - 0.05), 1.0, LEFT, WIDTH - RIGHT)
    y = scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    parts = _axes(shown.cost, x, y, marks, min(shares) - 0.05)
    for family in reversed(ORDER):
        own = [each[1:] for each in points if each[0] == family]
        # Side by side, since plans of one cost would cover each other.
        aside = ASIDE * (ORDER.index(family) - len(FAMILIES) / 2)
        inside = [(share, value.mean) for _, share, value in own if value.mean <= marks[-1]]
        if family in FAMILIES and len(inside) > 1:
            path = "L".join(f"{x(a) + aside:.1f} {y(b):.1f}" for a, b in sorted(inside))
            parts.append(tag("path", d=f"M{path}", class_=f"single {_hue(family)}"))
        parts += [
            _mark(family, arm, x(share) + aside, y, value, (marks[0], marks[-1]))
            for arm, share, value in own
        ]
    title = tag("title", f"Loss against cost: {shown.title}")
    view = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", title + Markup("").join(parts), viewBox=view, role="img")


def gates(result: PruneResult) -> Markup:
    """The probability of each option over the steps of the gates, for each layer and seed."""
    wide, high = PANEL_WIDTH + PANEL_GAP, PANEL_HEIGHT + PANEL_GAP
    parts: list[Markup] = []
    for layer in range(result.layers):
        middle = PANEL_LEFT + layer * wide + PANEL_WIDTH / 2
        parts.append(text(middle, 14, f"layer {layer}", "axis", "middle"))
    for row, (seed, snapshots) in enumerate(zip(result.seeds, result.history, strict=True)):
        top = 20 + row * high
        parts.append(text(PANEL_LEFT - 8, top + PANEL_HEIGHT / 2, f"seed {seed}", "axis", "end"))
        for layer in range(result.layers):
            parts += _panel(result, snapshots, layer, PANEL_LEFT + layer * wide, top)
    # Not narrower than the other figure, so that letters have one size.
    width = max(WIDTH, PANEL_LEFT + result.layers * wide)
    size = f"0 0 {width} {20 + len(result.seeds) * high}"
    title = tag("title", f"Gates over time: {result.target}")
    return tag("svg", title + Markup("").join(parts), viewBox=size, role="img")


def _panel(
    result: PruneResult, snapshots: Sequence[Snapshot], layer: int, left: float, top: float
) -> list[Markup]:
    """The probabilities of one layer over the steps, one on the other."""
    x = scale(0, max(each.step for each in snapshots), left, left + PANEL_WIDTH)
    y = scale(0, 1, top + PANEL_HEIGHT, top)
    steps = [x(each.step) for each in snapshots]
    parts: list[Markup] = []
    below = [0.0] * len(snapshots)
    for option, equation in enumerate(result.options):
        added = [each.probabilities[layer][option] for each in snapshots]
        above = [sum(each) for each in zip(below, added, strict=True)]
        edge = [*zip(steps, above, strict=True), *reversed([*zip(steps, below, strict=True)])]
        path = "L".join(f"{step:.1f} {y(value):.1f}" for step, value in edge)
        named = tag("title", f"{equation}: {added[-1]:.0%} at last")
        kind = f"option {color_class(option)}"
        parts.append(tag("path", named, d=f"M{path}Z", class_=kind))
        below = above
    return parts


def _choices(result: PruneResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """A row for each seed and chooser: the option of each layer with its colour."""
    colors = dict(_colors(result))
    return [
        (f"{who}, seed {seed}", [(each, colors[each]) for each in plan.split(IN_TURN)])
        for who, plans in (("gates", result.learned), (PROGRAM, result.integer_program))
        for seed, plan in zip(result.seeds, plans, strict=True)
    ]


def _colors(result: PruneResult) -> list[tuple[str, str]]:
    return [(each, color_class(number)) for number, each in enumerate(result.options)]


def _rows(result: PruneResult) -> list[tuple[str, str, str, str]]:
    """Each arm with its cost, its healed loss, and the loss above all layers as they are."""
    means = {
        name: sum(each.after for seed in arm.seeds for each in seed)
        / sum(len(seed) for seed in arm.seeds)
        for name, arm in result.arms.items()
    }
    return [
        (name, f"{result.cost(name):.1%}", f"{means[name]:.4f}", _signed(result.above(name)))
        for name in sorted(means, key=means.__getitem__)
    ]


def _signed(found: Estimate) -> str:
    half = "" if found.high is None else f" ± {found.high - found.mean:.4f}"
    return f"{found.mean:+.4f}{half}".replace("-", "−")


def _family(arm: str) -> str:
    return next((name for name, arms in FAMILIES.items() if arm in arms), RULES)


def _hue(family: str) -> str:
    return color_class(ORDER.index(family) + 1)


def _low(found: Estimate) -> float:
    return found.mean if found.low is None else found.low


def _high(found: Estimate) -> float:
    return found.mean if found.high is None else found.high


def _axes(cost: str, x: Scale, y: Scale, marks: Sequence[float], least: float) -> list[Markup]:
    """The grid, ticks and labels."""
    parts: list[Markup] = []
    places = places_of(marks)
    for each in marks:
        parts.append(tag("path", d=f"M{LEFT} {y(each):.1f}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(text(LEFT - 7, y(each) + 4, f"{each:+.{places}f}", "axis", "end"))
    for each in ticks(max(0.0, least), 1.0, 6):
        if max(0.0, least) <= each <= 1.0:
            parts.append(text(x(each), HEIGHT - BOTTOM + 17, f"{each:.0%}", "axis", "middle"))
    parts.append(tag("path", d=f"M{LEFT} {y(0.0):.1f}H{WIDTH - RIGHT}", class_="level"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 8, f"{cost} of the model's own", "axis", "end"))
    parts.append(text(LEFT, 16, "loss above all layers as they are, nats, healed", "axis"))
    return parts


def _mark(
    family: str, arm: str, x: float, y: Scale, value: Estimate, ends: tuple[float, float]
) -> Markup:
    """A point with its interval; one that is above the figure is a triangle at its edge."""
    bottom, top = ends
    name = tag("title", f"{arm}: {_signed(value)}")
    hue = f"mark {_hue(family)}"
    if value.mean > top:
        edge = y(top)
        path = f"M{x - 4:.1f} {edge + 7:.1f}H{x + 4:.1f}L{x:.1f} {edge:.1f}Z"
        return tag("g", name + tag("path", d=path, class_="dot"), class_=hue)
    parts = name
    if value.low is not None and value.high is not None:
        low, high = y(max(value.low, bottom)), y(min(value.high, top))
        parts += tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}", class_="bar")
    parts += tag("circle", cx=f"{x:.1f}", cy=f"{y(value.mean):.1f}", r=4, class_="dot")
    return tag("g", parts, class_=hue)
