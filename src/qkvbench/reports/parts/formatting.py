"""Numbers as text, the same way in every report."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from qkvbench.results.record import Machine, MetricInfo
from qkvbench.results.stats import WITH_SIZE, Comparison, Difference, Tally, Verdict

SEPARATOR = " · "
# Of the decimals of a difference that is close to an end of its interval.
MOST_PLACES = 9


@dataclass(frozen=True)
class Note:
    """Some sentences and their topic. Equations are between backquotes."""

    topic: str
    text: str


def metric_text(metric: MetricInfo) -> str:
    """The metric's name with spaces."""
    return metric.name.replace("_", " ")


def machine_text(machine: Machine) -> str:
    """The device and platform of a record."""
    return f"{machine.device}, {machine.platform}"


def decimals(result: Comparison | Tally) -> int:
    """The number of decimals of the scores: one or two digits of the median half interval."""
    match result:
        case Comparison(differences=differences):
            pairs = [(each.low, each.high) for each in differences.values()]
            halves = [
                (high - low) / 2 for low, high in pairs if low is not None and high is not None
            ]
            # The median, so that one arm with a large variance does not round the others away.
            if not halves:
                return 3
            return min(4, max(2, math.ceil(-math.log10(statistics.median(halves) / 3))))
        case _:
            return 3


def margin_text(margin: float, unit: str) -> str:
    """A margin with its unit; a proportion has none."""
    return f"{margin:.3g}" if unit == "share" else f"{margin:.3g} {unit}"


def number(value: float, places: int) -> str:
    """A number with this many decimals and a minus sign (U+2212); never a negative zero."""
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def size(value: float, places: int) -> str:
    """The same with so many more decimals that a size that is not zero is not printed as zero."""
    while 1e-6 < abs(value) < 0.5 * 10.0**-places:
        places += 1
    return number(value, places)


def signed(value: float, places: int) -> str:
    """The same with its sign."""
    text = number(value, places)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def share(value: float) -> str:
    """A proportion in percent, without decimals."""
    return f"{number(100 * value, 0)}%"


def change(value: float, base: float) -> str:
    """The relative change from a base, in percent with one decimal: ``−6.2%``."""
    return f"{signed(100 * (value / base - 1), 1)}%"


def p_text(p: float) -> str:
    """A p value with two or three decimals, or a bound on it."""
    if p < 0.001:
        return "p<0.001"
    if p > 0.99:
        return "p>0.99"
    return f"p={p:.{3 if p < 0.1 else 2}f}"


def bounds(difference: Difference, places: int) -> str:
    """The interval of a difference; empty if there is none."""
    if difference.low is None or difference.high is None:
        return ""
    low, high = (bound(each, difference, places) for each in (difference.low, difference.high))
    return f"[{low}, {high}]"


def value_and_half(difference: Difference, places: int, verdict: Verdict | None) -> tuple[str, str]:
    """A difference and half of its interval; the second is empty if it has none.

    An interval of a proportion is not symmetric. If half of it, on either side of the value,
    reaches zero though the arm differs by its verdict, it is the side towards zero instead. Both
    then have the decimals that show which is larger.
    """
    if difference.low is None or difference.high is None:
        return signed(difference.value, places), ""
    value, half = difference.value, (difference.high - difference.low) / 2
    if is_one_sided(difference, verdict):
        half = abs(value) - min(abs(difference.low), abs(difference.high))
    while verdict in WITH_SIZE and places < MOST_PLACES and _reaches_zero(value, half, places):
        places += 1
    return signed(value, places), number(half, places)


def is_one_sided(difference: Difference, verdict: Verdict | None) -> bool:
    """Whether half of the interval would reach zero, though the verdict is that the arm differs."""
    if difference.low is None or difference.high is None or verdict not in WITH_SIZE:
        return False
    return abs(difference.value) <= (difference.high - difference.low) / 2


def _reaches_zero(value: float, half: float, places: int) -> bool:
    """Whether an interval of this half reaches zero as it is printed."""
    return float(f"{abs(value):.{places}f}") <= float(f"{half:.{places}f}")


def bound(value: float, difference: Difference, places: int) -> str:
    """One end of an interval; one of an interval without zero is not printed as zero."""
    text = number(value, places)
    if difference.clear and float(text.replace("−", "-")) == 0:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return text


def arms_text(arms: Iterable[str]) -> str:
    """A list of equations, each between backquotes for `spans`."""
    return SEPARATOR.join(f"`{arm}`" for arm in arms)


def seeds_text(result: Comparison | Tally) -> str:
    """The number of seeds, in words."""
    return plural(len(result.seeds), "seed")


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def spreadsheet_text(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def spans(text: str) -> list[tuple[str, bool]]:
    """The text split at backquotes; each part with whether it is an equation."""
    return [(part, index % 2 == 1) for index, part in enumerate(text.split("`")) if part]


def printable(text: str) -> str:
    """One line without control characters, because a record's text is not trusted."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
