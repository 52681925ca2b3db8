"""`qkvbench cost`: what a model needs on named hardware, computed from plans and data sheets."""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from shutil import get_terminal_size
from typing import TypeVar, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import hardware
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.roofline import (
    Conditions,
    Work,
    bound,
    held_bytes,
    longest_context,
    prediction_s,
    work,
)
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.hardware import ARITHMETIC, Arithmetic, Device
from qkvbench.model import Model, shortest_cycle, write_cycle
from qkvbench.reports.parts.formatting import printable

DEFAULT_CONTEXT = 4096
# The first that a device has is taken, if no precision is asked for.
PREFERRED: tuple[Arithmetic, ...] = ("bf16", "fp16", "fp32")
MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
JOULES_PER_KWH = 3.6e6
MOST_COLUMNS = 100
# With fewer, the table of a device leaves out the time of a training step.
COLUMNS_OF_ALL = 92
DASH = "–"
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """The costs of one variant on one device; times are the least possible, except `expected_s`.

    ``devices`` is how many hold weights and cache; times and prices are of one device as if it did.
    ``joules`` and ``dollars`` are for a decoded token and for a million of them; prices have a
    lower and an upper end.
    """

    variant: str
    device: str
    precision: Arithmetic
    decode_s: float | None
    waits_for: str | None
    expected_s: float | None
    prefill_s: float
    training_step_s: float
    tokens_per_s: float | None
    held_bytes: float
    longest_context: int | None
    devices: int
    joules: float | None
    dollars: tuple[float, float] | None


def answer(request: Request) -> int:
    """Print the table of each device, or one line for each of all devices."""
    base, models = _models(request)
    devices = [_device(name) for name in request.hardware or hardware.names()]
    own = names.is_checkpoint(request.model)
    otherwise = "" if own else ", or --position rotary for any context"
    tokens = names.context(base, request.context, DEFAULT_CONTEXT, otherwise=otherwise)
    try:
        rows = [
            _row(model, device, request, tokens, name)
            for device in devices
            for name, model in models.items()
        ]
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was computed.") from None
    if request.json:
        print(json.dumps(_document(rows, devices, request, tokens), indent=1, ensure_ascii=False))
        return 0
    print(_heading(base, rows, request, tokens))
    if request.hardware:
        for device in devices:
            print(_device_text(device, [row for row in rows if row.device == device.name]), end="")
    else:
        print(_summary(devices, rows), end="")
    print(_legend(rows, detailed=bool(request.hardware)))
    return 0


def _models(request: Request) -> tuple[Model, dict[str, Model]]:
    """The model of the request, and the models to compare by name: a checkpoint comes first."""
    if not names.is_checkpoint(request.model):
        base = names.with_position(names.model_or_task(request.model), request.position)
        named = {text: names.with_variant(base, names.cycle(text)) for text in request.variants}
        return base, named
    if request.position is not None:
        raise RequestError(
            f"--position is for models of this bench; {printable(request.model)} has its own."
        )
    try:
        from qkvbench.hub.as_decoder import decoder_of, within_windows
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "huggingface_hub"):
            raise
        raise RequestError(
            f"A checkpoint's cost needs {error.name}, which is not installed: ./qkv setup hf"
        ) from None
    try:
        base = decoder_of(request.model)
    except (ValueError, OSError) as error:
        raise RequestError(f"{error}\nNothing was computed.") from None
    others = {
        text: within_windows(names.with_variant(base, names.cycle(text)), base)
        for text in request.variants
    }
    cycle = shortest_cycle(block.attention.variant for block in base.blocks if block.attention)
    written = write_cycle(cycle) if len(cycle) == 1 else "as it is"
    own = next((text for text, model in others.items() if model == base), written)
    return base, {own: base} | others


def _device(name: str) -> Device:
    try:
        return hardware.find(name)
    except hardware.UnknownDeviceError as error:
        raise RequestError(str(error)) from None


def _conditions(device: Device, request: Request, tokens: int) -> Conditions:
    """The types: those that were asked for, or the best that the device has."""
    precision = request.precision
    if precision is None:
        precision = next((each for each in PREFERRED if each in device.flops_per_s), None)
    if precision not in ARITHMETIC:
        known = ", ".join(device.flops_per_s)
        raise RequestError(f"--precision is one of {known} on {device.name}.")
    stored = names.cache_dtype(precision)
    weights = names.cache_dtype(request.weights) if request.weights else stored
    cache = names.cache_dtype(request.cache) if request.cache else weights
    return Conditions(tokens, request.batch, cast(Arithmetic, precision), weights, cache)


def _row(model: Model, device: Device, request: Request, tokens: int, variant: str) -> Row:
    conditions = _conditions(device, request, tokens)
    step = work(model, "decode", conditions) if model.decodes else None
    passed, trained = work(model, "prefill", conditions), work(model, "training step", conditions)
    least = bound(step, device, conditions.precision) if step else None
    held = held_bytes(model, conditions)
    return Row(
        variant=variant,
        device=device.name,
        precision=conditions.precision,
        decode_s=least.seconds if least else None,
        waits_for=least.by if least else None,
        expected_s=_expected(step, conditions, device) if step else None,
        prefill_s=bound(passed, device, conditions.precision).seconds,
        training_step_s=bound(trained, device, conditions.precision).seconds,
        tokens_per_s=step.tokens / least.seconds if step and least else None,
        held_bytes=held,
        longest_context=longest_context(model, conditions, device.memory_bytes.value),
        devices=-(-int(held) // int(device.memory_bytes.value)),
        joules=device.watts.value * least.seconds / step.tokens
        if device.watts and step and least
        else None,
        dollars=_dollars(device, request, least.seconds / step.tokens) if step and least else None,
    )


def _expected(step: Work, conditions: Conditions, device: Device) -> float | None:
    if device.calibration is None:
        return None
    return prediction_s(step, conditions, device.calibration)


def _dollars(device: Device, request: Request, token_s: float) -> tuple[float, float] | None:
    """Dollars for a million tokens: the hour, and the energy if it has a price."""
    hour = device.dollars_per_hour
    low, high = (hour.low, hour.high) if hour else (None, None)
    if request.price_per_hour is not None:
        low = high = request.price_per_hour
    energy = 0.0
    if request.power_price is not None:
        if device.watts is None:
            return None
        energy = device.watts.value * SECONDS_PER_HOUR / JOULES_PER_KWH * request.power_price
        low, high = low or 0.0, high or 0.0
    if low is None or high is None:
        return None
    hours = MILLION * token_s / SECONDS_PER_HOUR
    return (low + energy) * hours, (high + energy) * hours


def _heading(base: Model, rows: Sequence[Row], request: Request, tokens: int) -> str:
    """The answer in a sentence: how much less a step needs with each variant."""
    sequences = "1 sequence" if request.batch == 1 else f"{request.batch} sequences"
    if rows[0].decode_s is None:
        return f"{base.name} over {tokens:,} tokens of {sequences}, by data sheets.\n"
    least = [row for row in rows if row.variant == rows[0].variant]
    others = [row for row in rows if row.variant != rows[0].variant]
    step = f"a decode step of {base.name} over {tokens:,} cached tokens of {sequences}"
    if not others:
        return f"By data sheets, {step} takes at least {seconds_text(least[0].decode_s or 0)}.\n"
    texts = []
    for variant in dict.fromkeys(row.variant for row in others):
        saved = [
            1 - (row.decode_s or 0) / (whole.decode_s or 1)
            for row in others
            for whole in least
            if row.variant == variant and row.device == whole.device
        ]
        texts.append(f"{_change(saved)} with {variant}")
    text = (
        f"By data sheets, the least time of {step}, beside that of {rows[0].variant}: "
        f"{', '.join(texts)}."
    )
    return textwrap.fill(text, _columns()) + "\n"


def _change(saved: Sequence[float]) -> str:
    """Shares that are saved, on one device or several, in words."""
    low, high = (round(100 * each) for each in (min(saved), max(saved)))
    if low < 0 < high:
        return f"{-low}% more to {high}% less"
    sizes = sorted({abs(low), abs(high)})
    return f"{' to '.join(map(str, sizes))}% {'more' if low < 0 else 'less'}"


def _device_text(device: Device, rows: Sequence[Row]) -> str:
    """One device: its figures, and a row for each variant."""
    rate = device.flops_per_s[rows[0].precision].value
    lines = [
        f"{device.name}: {device.about} · {count_text(device.bandwidth_bytes_per_s.value)}B/s · "
        f"{count_text(rate)}OP/s in {rows[0].precision}"
    ]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("variant", overflow="fold")
    cells = {
        "decode ≥": [_seconds(row.decode_s) for row in rows],
        "expected": [_seconds(row.expected_s) for row in rows],
        "waits for": [row.waits_for or DASH for row in rows],
        "prefill ≥": [_seconds(row.prefill_s) for row in rows],
        "training ≥": [_seconds(row.training_step_s) for row in rows],
        "held": [bytes_text(row.held_bytes) + _needed(row) for row in rows],
        "longest": [_number(row.longest_context, count_text) for row in rows],
        "J/token": [_number(row.joules, "{:.2g}".format) for row in rows],
        "$/M tokens": [_number(row.dollars, _range) for row in rows],
    }
    if not any(row.expected_s for row in rows):
        del cells["expected"]
    if _columns() < COLUMNS_OF_ALL:
        del cells["training ≥"]
    for head in cells:
        table.add_column(head, justify="right")
    for row, *texts in zip(rows, *cells.values(), strict=True):
        table.add_row(row.variant, *texts)
    return _printed(lines, table)


def _summary(devices: Sequence[Device], rows: Sequence[Row]) -> str:
    """A line for each device: the first variant's least time of a step, and the others' share."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("device", no_wrap=True)
    table.add_column("type")
    for number, variant in enumerate(variants):
        table.add_column(f"{variant} ≥" if number == 0 else variant, justify="right")
    for device in devices:
        own = [row for row in rows if row.device == device.name]
        cells = [_seconds(own[0].decode_s) + _needed(own[0])]
        for row in own[1:]:
            share = (row.decode_s or 0) / (own[0].decode_s or 1)
            cells.append((DASH if row.decode_s is None else f"{share:.0%}") + _needed(row))
        table.add_row(device.name, own[0].precision, *cells)
    return _printed([], table)


def _needed(row: Row) -> str:
    """How many devices hold it, if one does not."""
    return f" ({row.devices}×)" if row.devices > 1 else ""


def _legend(rows: Sequence[Row], *, detailed: bool) -> str:
    bound = (
        "≥: no program that passes all tokens through all layers takes less time; how much longer "
        "it takes depends on the program."
    )
    lines = textwrap.wrap(bound, _columns())
    if any(row.devices > 1 for row in rows):
        lines.append("N×: it takes so many devices to hold it; the time is that of one that would.")
    if detailed and any(row.joules for row in rows):
        lines.append("Energy is an estimate: the device's power times the bound.")
    if detailed and any(row.expected_s for row in rows):
        lines.append("Expected: by rates that were measured on that machine.")
    return "\n".join(lines)


def _document(
    rows: Sequence[Row], devices: Sequence[Device], request: Request, tokens: int
) -> dict[str, object]:
    return {
        "model": request.model,
        "context": tokens,
        "batch": request.batch,
        "devices": [each.model_dump(mode="json", exclude_none=True) for each in devices],
        "costs": [vars(row) for row in rows],
    }


def _seconds(value: float | None) -> str:
    return _number(value, seconds_text)


def _number(value: T | None, text: Callable[[T], str]) -> str:
    return DASH if value is None else text(value)


def _columns() -> int:
    """The width of what is printed: that of the terminal, if it is narrower than usual."""
    return min(MOST_COLUMNS, get_terminal_size((MOST_COLUMNS, 0)).columns)


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{each:.2g}" for each in ends)
    return low if low == high else f"{low}–{high}"


def _printed(lines: Sequence[str], table: Table) -> str:
    file = StringIO()
    console = Console(
        file=file, width=_columns(), color_system=None, legacy_windows=False, force_jupyter=False
    )
    for line in lines:
        console.print(Text(line))
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
