"""Elements, scales and ticks of the figures, which are inline SVG."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

COLORS = 8


def tag(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """One element; text and values are escaped; `class_` stands for class and `a_b` for a-b."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{text}>{escape(content)}</{name}>")


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> Markup:
    """A text element; `anchor` is the side at which it begins, as in SVG."""
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map that takes `low` to `start` and `high` to `end`; the middle if they agree."""
    if low == high:
        return lambda _: (start + end) / 2
    return lambda value: start + (end - start) * (value - low) / (high - low)


def padded_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some padding."""
    low, high = min(values), max(values)
    padding = 0.06 * (high - low) or 0.01 * max(1.0, abs(high))
    return low - padding, high + padding


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them inside."""
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def places_of(values: Sequence[float]) -> int:
    """The decimals that such ticks need."""
    return max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))


def color_class(order: int) -> str:
    """The CSS classes of an arm's curve: its colour, and dashes once the colours are used up."""
    if order == 0:
        return "baseline"
    dashes = " dashed" if order > COLORS else ""
    return f"h{(order - 1) % COLORS}{dashes}"


def apart(places: Mapping[str, float], room: float) -> dict[str, float]:
    """The places of labels, moved down if they would touch."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = max(place, last + room)
        found[name] = last
    return found
