"""Figures as the sources print them: a value, and the range that its digits leave open."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

# Half a digit up from 5.1 and half a digit down from 5.2 are equal, except in binary arithmetic.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Figure:
    """A number between two bounds, which are equal if it is exact, and its text."""

    value: float
    low: float
    high: float
    text: str


def figure(text: str, unit: str = "", *, step: float | None = None) -> Figure:
    """A figure as a source prints it: it may be off by half of its last digit, or of `step`."""
    number = Decimal(text.replace(",", ""))
    exponent = number.as_tuple().exponent
    half = (10.0 ** int(exponent) if step is None else step) / 2
    value = float(number)
    space = "" if unit in ("", "%", "×") else " "
    return Figure(value, value - half, value + half, f"{text}{space}{unit}")


def exact_figure(value: float, text: str) -> Figure:
    """A figure with no rounding error, because it is computed."""
    return Figure(value, value, value, text)


def count_figure(count: int) -> Figure:
    """A count of which every digit is known."""
    return exact_figure(count, f"{count:,}")


def percent_figure(share: float) -> Figure:
    """A computed share, in percent."""
    return exact_figure(100 * share, percent(share, 2))


def range_figure(value: float, low: float, high: float) -> Figure:
    """A computed share that lies between two others, in percent."""
    text = f"{percent(low)} to {percent(high)}"
    return Figure(100 * value, 100 * low, 100 * high, text)


def change(new: Figure, old: Figure) -> Figure:
    """The change from `old` to `new` in percent, at the digits of both."""
    value, low, high = (
        100 * (a / b - 1)
        for a, b in ((new.value, old.value), (new.low, old.high), (new.high, old.low))
    )
    return Figure(value, low, high, f"{signed(value, 2)}% ({signed(low, 2)} to {signed(high, 2)})")


def reduction(new: Figure, old: Figure) -> Figure:
    """The reduction from `old` to `new` in percent of `old`, at the digits of both."""
    by = change(new, old)
    text = f"{-by.value:.1f}% ({-by.high:.1f} to {-by.low:.1f})"
    return Figure(-by.value, -by.high, -by.low, text)


def quotient(above: Figure, below: Figure, unit: str = "", *, times: float = 1) -> Figure:
    """One figure over the other, at the digits of both."""
    value = times * above.value / below.value
    low, high = times * above.low / below.high, times * above.high / below.low
    return Figure(value, low, high, f"{value:.2f}{unit} ({low:.2f} to {high:.2f})")


def mean(figures: Sequence[Figure], places: int) -> Figure:
    """The mean of figures, at their digits."""
    value, low, high = (
        sum(each) / len(figures)
        for each in zip(*((f.value, f.low, f.high) for f in figures), strict=True)
    )
    return Figure(value, low, high, f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})")


def agree(printed: Figure, computed: Figure) -> bool:
    """Whether both can be the same number: their ranges overlap."""
    rounding = ROUNDING * max(1.0, abs(printed.value))
    return printed.low <= computed.high + rounding and computed.low <= printed.high + rounding


def rounds_to(printed: Figure, computed: Figure) -> bool:
    """Whether the computed value, rounded to the printed digits, is the printed one."""
    rounding = ROUNDING * max(1.0, abs(printed.value))
    return printed.low - rounding <= computed.value <= printed.high + rounding


def signed(value: float, places: int) -> str:
    """A number with its sign; minus is U+2212."""
    return f"{value:+.{places}f}".replace("-", "−")


def percent(share: float, places: int = 1) -> str:
    """A share as percent."""
    return f"{100 * share:.{places}f}%".replace("-", "−")
