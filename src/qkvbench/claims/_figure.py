"""Figures as the sources print them: a value, and how far its digits leave it open."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Figure:
    """A number between two bounds, equal where it is exact, and how it is shown."""

    value: float
    low: float
    high: float
    text: str

    @property
    def digits(self) -> float:
        """Half of the last digit that is shown, or what the bounds leave open."""
        return (self.high - self.low) / 2


def printed(text: str, unit: str = "", *, step: float | None = None) -> Figure:
    """A figure as a source prints it: it may be off by half of its last digit, or of `step`."""
    number = Decimal(text.replace(",", ""))
    exponent = number.as_tuple().exponent
    half = (10.0 ** int(exponent) if step is None else step) / 2
    value = float(number)
    space = "" if unit in ("", "%", "×") else " "
    return Figure(value, value - half, value + half, f"{text}{space}{unit}")


def whole(count: int, unit: str = "") -> Figure:
    """A count that is printed in full, with nothing left open."""
    return Figure(count, count, count, f"{count:,}{' ' if unit else ''}{unit}")


def share(part: float) -> Figure:
    """A computed share, in percent."""
    return Figure(100 * part, 100 * part, 100 * part, percent(part, 2))


def exact(value: float, text: str) -> Figure:
    """A figure that is computed and has no rounding to speak of."""
    return Figure(value, value, value, text)


def change(new: Figure, old: Figure) -> Figure:
    """How far `new` lies from `old`, in percent, at the digits that both show."""
    value, low, high = (
        100 * (a / b - 1)
        for a, b in ((new.value, old.value), (new.low, old.high), (new.high, old.low))
    )
    return Figure(value, low, high, f"{signed(value, 2)}% ({signed(low, 2)} to {signed(high, 2)})")


def reduction(new: Figure, old: Figure) -> Figure:
    """By how much `new` lies below `old`, in percent of it, at the digits that both show."""
    by = change(new, old)
    text = f"{-by.value:.1f}% ({-by.high:.1f} to {-by.low:.1f})"
    return Figure(-by.value, -by.high, -by.low, text)


def quotient(above: Figure, below: Figure, unit: str = "", *, times: float = 1) -> Figure:
    """One figure over the other, at the digits that both show."""
    value = times * above.value / below.value
    low, high = times * above.low / below.high, times * above.high / below.low
    return Figure(value, low, high, f"{value:.2f}{unit} ({low:.2f} to {high:.2f})")


def mean(figures: Sequence[Figure], places: int) -> Figure:
    """The mean of figures, at the digits that they show."""
    value, low, high = (
        sum(each) / len(figures)
        for each in zip(*((f.value, f.low, f.high) for f in figures), strict=True)
    )
    return Figure(value, low, high, f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})")


def agree(stated: Figure, found: Figure) -> bool:
    """Whether both can be the same number."""
    rounding = 1e-9 * max(1.0, abs(stated.value))
    return stated.low <= found.high + rounding and found.low <= stated.high + rounding


def rounds_to(stated: Figure, found: Figure) -> bool:
    """Whether the value found, written with the digits of the stated one, is that one."""
    rounding = 1e-9 * max(1.0, abs(stated.value))
    return stated.low - rounding <= found.value <= stated.high + rounding


def signed(value: float, places: int) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{places}f}".replace("-", "−")


def percent(part: float, places: int = 1) -> str:
    """A share as percent."""
    return f"{100 * part:.{places}f}%".replace("-", "−")


def millions(count: float) -> str:
    """A count of learned numbers in millions, two decimals."""
    return f"{count / 1e6:.2f} M"
