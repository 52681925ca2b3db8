"""Bytes, seconds and counts as text. The only module that gives a number its unit."""

import math

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", " k", " M", " G", " T", " P")
_SECONDS = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))


def bytes_text(count: float) -> str:
    """Bytes with a binary unit and three digits: ``80 KiB``."""
    value, unit = _scaled(count, 1024, _BINARY)
    return f"{value} {unit}"


def count_text(count: float) -> str:
    """A plain count with a decimal prefix and three digits: ``1.23 M``."""
    value, unit = _scaled(count, 1000, _DECIMAL)
    return f"{value}{unit}"


def seconds_text(seconds: float) -> str:
    """A duration with three digits below a minute (``412 µs``), in whole parts above."""
    if round(seconds) >= 60:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    if seconds == 0:
        return "0 s"
    # The unit is chosen after rounding: 0.9996 ms is 1 ms, not 1000 µs.
    rounded = float(f"{abs(seconds):.3g}")
    size, unit = next(((s, u) for s, u in reversed(_SECONDS) if rounded >= s), _SECONDS[0])
    return f"{'−' if seconds < 0 else ''}{_digits(rounded / size)} {unit}"


def _scaled(count: float, base: int, units: tuple[str, ...]) -> tuple[str, str]:
    rest = abs(count)
    step = 0
    # A unit is left behind as soon as the rounded figure would read as the next one.
    while float(_digits(rest)) >= base and step < len(units) - 1:
        rest /= base
        step += 1
    return ("−" if count < 0 else "") + _digits(rest), units[step]


def _digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers stay whole."""
    if value == int(value) or value >= 100:
        return str(math.floor(value + 0.5))
    decimals = 2 - math.floor(math.log10(value))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".")
