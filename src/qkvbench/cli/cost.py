"""`qkvbench cost`: what a model needs on named hardware, computed from plans and data sheets."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import cast

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
from qkvbench.model import Model

DEFAULT_CONTEXT = 4096
# The first that a device has is taken, if no precision is asked for.
PREFERRED: tuple[Arithmetic, ...] = ("bf16", "fp16", "fp32")
MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
JOULES_PER_KWH = 3.6e6
WIDTH = 100
DASH = "–"


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
    base = names.with_position(names.model_or_task(request.model), request.position)
    variants = list(dict.fromkeys(request.variants))
    models = [names.with_variant(base, names.cycle(text)) for text in variants]
    devices = [_device(name) for name in request.hardware or hardware.names()]
    tokens = _tokens(base, request.context)
    try:
        rows = [
            _row(model, device, request, tokens, name)
            for device in devices
            for model, name in zip(models, variants, strict=True)
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


def _device(name: str) -> Device:
    try:
        return hardware.find(name)
    except hardware.UnknownDeviceError as error:
        raise RequestError(str(error)) from None


def _tokens(base: Model, wanted: int | None) -> int:
    if base.longest is None:
        return wanted or DEFAULT_CONTEXT
    if wanted is not None and wanted > base.longest:
        raise RequestError(
            f"{base.name} reads at most {base.longest} tokens, so --context {wanted} is not "
            f"possible; write --position rotary for any context, or --context {base.longest}."
        )
    return wanted or min(DEFAULT_CONTEXT, base.longest)


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
        low, high = (f"{100 * each:.0f}" for each in (min(saved), max(saved)))
        texts.append(f"{low if low == high else f'{low} to {high}'}% with {variant}")
    text = (
        f"By data sheets, the least time of {step} falls, from that of {rows[0].variant}, by "
        f"{', '.join(texts)}."
    )
    return textwrap.fill(text, WIDTH) + "\n"


def _device_text(device: Device, rows: Sequence[Row]) -> str:
    """One device: its figures, and a row for each variant."""
    rate = device.flops_per_s[rows[0].precision].value
    lines = [
        f"{device.name}: {device.about} · {count_text(device.bandwidth_bytes_per_s.value)}B/s · "
        f"{count_text(rate)}OP/s in {rows[0].precision}"
    ]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("variant", overflow="fold")
    expected = any(row.expected_s for row in rows)
    heads = ["decode ≥", "expected" if expected else "", "waits for", "prefill ≥", "training ≥"]
    heads += ["held", "longest", "J/token", "$/M tokens"]
    shown = [head for head in heads if head]
    for head in shown:
        table.add_column(head, justify="right")
    for row in rows:
        cells = [
            _seconds(row.decode_s),
            *([_seconds(row.expected_s)] if expected else []),
            row.waits_for or DASH,
            _seconds(row.prefill_s),
            _seconds(row.training_step_s),
            bytes_text(row.held_bytes) + (f" ({row.devices}×)" if row.devices > 1 else ""),
            DASH if row.longest_context is None else count_text(row.longest_context),
            DASH if row.joules is None else f"{row.joules:.2g}",
            DASH if row.dollars is None else _range(row.dollars),
        ]
        table.add_row(row.variant, *cells)
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
    lines = ["≥: no program takes less time; how much longer it takes depends on the program."]
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
    return DASH if value is None else seconds_text(value)


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{each:.2g}" for each in ends)
    return low if low == high else f"{low} to {high}"


def _printed(lines: Sequence[str], table: Table) -> str:
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, legacy_windows=False, force_jupyter=False
    )
    for line in lines:
        console.print(Text(line))
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
