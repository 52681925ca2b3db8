"""A device record of this machine: its limits, and the rates that programs of this bench reach.

Rates come from decode steps and prefills of small models, differences of which are one part alone:
layers from a deeper model, weights from wider ones, their products from more sequences, cached rows
from a longer context, attention from a longer prompt. What the record predicts elsewhere is
compared in `benchmarks/cost_model.py`.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar, cast

from qkvbench import native
from qkvbench.backends import Kind, find
from qkvbench.backends.common.free_memory import total_bytes
from qkvbench.cost import CacheDtype, parameters
from qkvbench.cost.roofline import Conditions, Work, work
from qkvbench.experiment import Precision
from qkvbench.hardware import Device, parse
from qkvbench.measure.machine import cores, machine
from qkvbench.model import PRESETS, Block, Model
from qkvbench.model.parts import FeedForward
from qkvbench.native import ceilings
from qkvbench.variant import parse as parse_variant
from qkvbench.variant import sized

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
CACHES: tuple[CacheDtype, ...] = ("fp32", "bf16", "int8")
# (width, layers) of the models whose weights are read, from a megabyte up.
READERS = ((128, 2), (256, 4), (512, 8), (1024, 10))
HEAD_DIM = 64
# Tokens in the cache that cost next to nothing, and those of the two contexts that are compared.
SHORT, MIDDLE, LONG = 16, 2048, 16384
# A wide model and a short prompt have products with weights; a narrow one and a long prompt have
# attention.
WIDE, NARROW = 512, 128
# One row for eight query heads; and a plan that no kernel of this bench runs.
GROUPED, UNFUSED = "q,k,v/1", "q,k=L(96),v=L(96)+ropehead32"
SHORT_PROMPT, LONG_PROMPT = 256, 4096
SAMPLES, SAMPLE_S = 30, 1.0
# Beside the last cache of any processor.
MEMORY_READ = 2**28
MATMUL_SIZES = (512, 1024, 2048)
CACHE_NAMES = ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE")
# At least so much is taken for a cache, if the system does not say.
UNKNOWN_CACHE = 2**22
# A difference of two times below this share of the longer one is noise; so often it is measured.
LEAST_SHARE, TRIES = 0.005, 4


class DisturbedError(Exception):
    """Other processes hid what was to be timed; the message says which part of a step."""


class _HiddenError(Exception):
    """One measurement in which a part of a step is less than noise."""


Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Timer:
    """Times steps of models on this machine with so many threads."""

    threads: int

    def step_s(
        self,
        kind: Kind,
        model: Model,
        precision: Precision,
        context: int,
        cache: CacheDtype | None = None,
        batch: int = 1,
    ) -> float:
        """The fastest of many steps of `batch` sequences, without the time of other processes.

        Whatever else a machine does only makes a step slower, and differently from one minute to
        the next: differences of medians would be differences of its load.
        """
        backend = find("torch")
        backend.prepare(self.threads)
        timed = backend.workload(kind, model, precision, context=context, batch=batch, rows=cache)
        for _ in range(3):
            timed.step()
        # Processor time is the undisturbed time only if one thread does all the work.
        clock = time.process_time if self.threads == 1 else time.perf_counter
        times: list[float] = []
        while len(times) < 3 or (len(times) < SAMPLES and sum(times) < SAMPLE_S):
            began = clock()
            timed.step()
            times.append(clock() - began)
        return min(times)


def calibrate(name: str, threads: int) -> Device:
    """The record of this machine, as `qkvbench.hardware` has them; it takes about a minute.

    Raises DisturbedError if the machine is too busy, UnknownDeviceError if the rates contradict
    each other.
    """
    timer = Timer(threads)
    step_s, layer_s, reads = _weights(timer)
    today = datetime.now(UTC).date().isoformat()
    source = f"measured on {today}, {threads} threads"
    rates = {
        precision: {"value": rate, "source": source}
        for precision, rate in _peak_rates(threads).items()
    }
    return parse(
        name,
        {
            "about": f"{machine('cpu').platform}, {threads} of {cores()} cores"[:200],
            "memory_bytes": {
                "value": total_bytes(),
                "source": "reported by the system",
            },
            "bandwidth_bytes_per_s": {"value": _bandwidth(threads), "source": source},
            "on_chip_bytes": {"value": _last_cache_bytes(), "source": "reported by the system"},
            "flops_per_s": rates,
            "calibration": {
                "date": today,
                "threads": threads,
                "step_s": step_s,
                "layer_s": layer_s,
                "reads": reads,
                "step_product_flops_per_s": {
                    precision: _step_product_rate(timer, precision) for precision in PRECISIONS
                },
                "step_sequences": native.MAX_ROWS,
                "cache_bytes_per_s": {each: _cache_rate(timer, each).by_bytes for each in CACHES},
                "row_flops_per_s": {
                    each: _cache_rate(timer, each, GROUPED).by_flops for each in CACHES
                },
                "unfused_flops_per_s": {
                    each: _cache_rate(timer, each, UNFUSED).by_flops for each in CACHES
                },
                "kernel_features": sorted(native.CAPABILITIES.features)
                if native.missing_requirement() is None
                else [],
                **_pass_rates(timer),
            },
        },
    )


def toml(device: Device) -> str:
    """The text of a device's file."""
    lines = [f"about = {_quoted(device.about)}"]
    for name, figure in device.model_dump(exclude_none=True, exclude={"name", "about"}).items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(value)}" for key, value in figure.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    match value:
        case str():
            return _quoted(value)
        case float():
            return f"{value:.4g}"
        case dict():
            pairs = cast(dict[str, object], value).items()
            return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in pairs) + " }"
        case tuple() | list():
            return f"[{', '.join(map(_value, cast(list[object], value)))}]"
        case _:
            return str(value)


def _quoted(text: str) -> str:
    return '"' + re.sub(r'[\x00-\x1f"\\]', " ", text) + '"'


def decoder(width: int, layers: int, hidden: int | None = None) -> Model:
    """A decoder with heads of 64 and rotary positions."""
    base = PRESETS["small-decoder"]()
    attention = base.blocks[0].attention
    block = Block(attention, FeedForward(hidden or 4 * width))
    return replace(base, geometry=sized(width, width // HEAD_DIM), blocks=(block,) * layers)


def _undisturbed(measure: Callable[[], Measured], part: str) -> Measured:
    """A measurement of this part of a step, taken again while other processes hide the part."""
    for _ in range(TRIES):
        with suppress(_HiddenError):
            return measure()
    raise DisturbedError(f"In {TRIES} tries the time of {part} could not be told from noise.")


def _difference_s(longer_s: float, shorter_s: float) -> float:
    """The time that the longer step takes beyond the shorter; _HiddenError if it is noise."""
    if longer_s - shorter_s <= LEAST_SHARE * longer_s:
        raise _HiddenError
    return longer_s - shorter_s


def _weights(timer: Timer) -> tuple[float, float, dict[str, list[dict[str, float]]]]:
    """Seconds of a decode step beside its layers, and of a layer; and the rates of its weights.

    They are taken together: a disturbed overhead is seen by what it leaves for the weights.
    """

    def measure() -> tuple[float, float, dict[str, list[dict[str, float]]]]:
        step_s, layer_s = _overhead(timer)
        return step_s, layer_s, {each: _reads(timer, step_s, layer_s, each) for each in PRECISIONS}

    return _undisturbed(measure, "reading weights")


def _overhead(timer: Timer) -> tuple[float, float]:
    """Seconds of a decode step beside its layers, and of a layer, with next to no weights."""
    few, many = 2, 12
    short = timer.step_s("decode", decoder(HEAD_DIM, few, 64), "fp32", SHORT)
    deep = timer.step_s("decode", decoder(HEAD_DIM, many, 64), "fp32", SHORT)
    layer_s = _difference_s(deep, short) / (many - few)
    # Layers of a deep model may be slower than those of a short one, which then is all layers.
    return max(0.0, short - few * layer_s), layer_s


def _reads(
    timer: Timer, step_s: float, layer_s: float, precision: Precision
) -> list[dict[str, float]]:
    """The rate at which a decode step reads weights of this type, by their bytes."""
    found = []
    for width, layers in READERS:
        model = decoder(width, layers)
        conditions = Conditions(SHORT, 1, precision, precision, precision)
        moved = work(model, "decode", conditions).moved_bytes
        whole_s = timer.step_s("decode", model, precision, SHORT)
        seconds = _difference_s(whole_s, step_s + layers * layer_s)
        found.append({"working_set_bytes": moved, "bytes_per_s": moved / seconds})
    return found


def _step_product_rate(timer: Timer, precision: Precision) -> float:
    """Operations per second of products with weights, in a step of as many as a kernel takes."""
    model = decoder(WIDE, 4)
    few, many = (
        work(model, "decode", Conditions(SHORT, batch, precision, precision, precision))
        for batch in (1, native.MAX_ROWS)
    )

    def measure() -> float:
        return _difference_s(
            timer.step_s("decode", model, precision, SHORT, batch=native.MAX_ROWS),
            timer.step_s("decode", model, precision, SHORT),
        )

    seconds = _undisturbed(measure, f"products of {native.MAX_ROWS} sequences in {precision}")
    return (many.weights.flops - few.weights.flops) / seconds


class _Rate(NamedTuple):
    """Bytes of cached rows, and operations with them, that a decode step does per second."""

    by_bytes: float
    by_flops: float


def _cache_rate(timer: Timer, cache: CacheDtype, equation: str = "q,k,v") -> _Rate:
    """The rate beyond a middle context."""
    model = decoder(WIDE, 2).with_variant(parse_variant(equation))
    precision: Precision = "fp32" if cache == "fp32" else "bf16"
    rows = None if cache == precision else cache

    def measure() -> float:
        return _difference_s(
            timer.step_s("decode", model, precision, LONG, rows),
            timer.step_s("decode", model, precision, MIDDLE, rows),
        )

    passed = _undisturbed(measure, f"reading {cache} rows of {equation}")
    long, middle = (
        work(model, "decode", Conditions(tokens, 1, precision, precision, cache)).attention
        for tokens in (LONG, MIDDLE)
    )
    return _Rate(
        (long.moved_bytes - middle.moved_bytes) / passed, (long.flops - middle.flops) / passed
    )


def _pass_rates(timer: Timer) -> dict[str, dict[str, float]]:
    """Operations per second of a prefill, of products with weights and of attention."""
    products: dict[str, float] = {}
    attention: dict[str, float] = {}
    for precision in PRECISIONS:
        products[precision], attention[precision] = _undisturbed(
            partial(_prefill_rates, timer, precision), f"a prefill in {precision}"
        )
    return {"product_flops_per_s": products, "attention_flops_per_s": attention}


def _prefill_rates(timer: Timer, precision: Precision) -> tuple[float, float]:
    """The rates of products and of attention; a disturbed one is seen by what it leaves."""
    short_s, short = _prefill(timer, NARROW, SHORT_PROMPT, precision)
    long_s, long = _prefill(timer, NARROW, LONG_PROMPT, precision)
    # What the short prompt takes, the long one takes as often as it has more products.
    times = long.weights.flops / short.weights.flops
    attended = long.attention.flops - times * short.attention.flops
    attention = attended / _difference_s(long_s, times * short_s)
    wide_s, wide = _prefill(timer, WIDE, SHORT_PROMPT, precision)
    products = wide.weights.flops / _difference_s(wide_s, wide.attention.flops / attention)
    return products, attention


def _prefill(timer: Timer, width: int, tokens: int, precision: Precision) -> tuple[float, Work]:
    model = decoder(width, 2)
    conditions = Conditions(tokens, 1, precision, precision, precision)
    return timer.step_s("prefill", model, precision, tokens), work(model, "prefill", conditions)


def _bandwidth(threads: int) -> float:
    """Bytes per second of the fastest read of memory that is known here."""
    if native.missing_requirement() is None:
        return ceilings.read_bytes_per_s(MEMORY_READ, threads)
    model = decoder(1024, 10)
    return 4 * parameters(model).total / Timer(threads).step_s("decode", model, "fp32", SHORT)


def _peak_rates(threads: int) -> dict[str, float]:
    """The fastest products of each type: large matrices, or multiply-adds on registers."""
    backend = find("torch")
    registers = 0.0
    if native.missing_requirement() is None:
        registers = threads * ceilings.multiplied_flops_per_s()
    rates = {
        precision: max(
            registers,
            *(2 * size**3 / backend.matmul_seconds(precision, size) for size in MATMUL_SIZES),
        )
        for precision in PRECISIONS
    }
    # What fp32 can do, a narrower type can by widening.
    return {precision: max(rate, rates["fp32"]) for precision, rate in rates.items()}


def _last_cache_bytes() -> float:
    """Bytes of this processor's last cache, which a measured bandwidth does not bound."""
    names = [name for name in CACHE_NAMES if name in os.sysconf_names]
    return float(max([os.sysconf(name) for name in names] + [UNKNOWN_CACHE]))
