"""A device record of this machine: its limits, and the rates that programs of this bench reach.

Rates come from decode steps and prefills of small models, differences of which are one part alone:
layers from a deeper model, weights from wider ones, cached rows from a longer context, attention
from a longer prompt. What the record predicts elsewhere is compared in `benchmarks/cost_model.py`.
"""

import os
import re
import statistics
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import psutil

from qkvbench import native
from qkvbench.backends import Kind, find
from qkvbench.cost import CACHE_FORMATS, CacheDtype, cache_bytes_per_token, parameters
from qkvbench.cost.roofline import Conditions, Work, work
from qkvbench.experiment import Precision
from qkvbench.hardware import Device, Read, parse
from qkvbench.measure.machine import cores, machine
from qkvbench.model import PRESETS, Block, Model
from qkvbench.model.parts import FeedForward
from qkvbench.native import ceilings
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
SHORT_PROMPT, LONG_PROMPT = 256, 4096
SAMPLES, SAMPLE_S = 30, 1.0
# Beside the last cache of any processor.
MEMORY_READ = 2**28
MATMUL_SIZES = (512, 1024, 2048)
CACHE_NAMES = ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE")
# At least so much is taken for a cache, if the system does not say.
UNKNOWN_CACHE = 2**22


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
        """The median of a step of `batch` sequences, without the time of other processes."""
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
        return statistics.median(times)


def calibrate(name: str, threads: int) -> Device:
    """The record of this machine, as `qkvbench.hardware` has them; it takes about a minute."""
    timer = Timer(threads)
    step_s, layer_s = _overhead(timer)
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
                "value": psutil.virtual_memory().total,
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
                "reads": [read.model_dump() for read in _reads(timer, step_s, layer_s)],
                "cache_bytes_per_s": {each: _cache_rate(timer, each) for each in CACHES},
                **_pass_rates(timer),
            },
        },
    )


def toml(device: Device) -> str:
    """The text of a device's file."""
    lines = [f"about = {_quoted(device.about)}"]
    for name, figure in device.model_dump(exclude_none=True, exclude={"name", "about"}).items():
        lines += ["", f"[{name}]"]
        for key, value in figure.items():
            match value:
                case dict():
                    pairs = ", ".join(f"{inner} = {_value(each)}" for inner, each in value.items())
                    lines.append(f"{key} = {{ {pairs} }}")
                case tuple() | list():
                    rows = ", ".join(
                        "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in row.items()) + " }"
                        for row in value
                    )
                    lines.append(f"{key} = [{rows}]")
                case _:
                    lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return '"' + re.sub(r'[\x00-\x1f"\\]', " ", text) + '"'


def decoder(width: int, layers: int, hidden: int | None = None) -> Model:
    """A decoder with heads of 64 and rotary positions."""
    base = PRESETS["small-decoder"]()
    attention = base.blocks[0].attention
    block = Block(attention, FeedForward(hidden or 4 * width))
    return replace(base, geometry=sized(width, width // HEAD_DIM), blocks=(block,) * layers)


def _overhead(timer: Timer) -> tuple[float, float]:
    """Seconds of a decode step beside its layers, and of a layer, with next to no weights."""
    few, many = 2, 12
    short = timer.step_s("decode", decoder(HEAD_DIM, few, 64), "fp32", SHORT)
    deep = timer.step_s("decode", decoder(HEAD_DIM, many, 64), "fp32", SHORT)
    layer_s = max(0.0, (deep - short) / (many - few))
    return max(0.0, short - few * layer_s), layer_s


def _reads(timer: Timer, step_s: float, layer_s: float) -> list[Read]:
    """The rate at which a decode step reads weights, by their bytes."""
    found = []
    for width, layers in READERS:
        model = decoder(width, layers)
        moved = work(model, "decode", Conditions(SHORT, 1, "fp32", "fp32", "fp32")).moved_bytes
        seconds = timer.step_s("decode", model, "fp32", SHORT) - step_s - layers * layer_s
        found.append(Read(working_set_bytes=moved, bytes_per_s=moved / max(seconds, 1e-7)))
    return found


def _cache_rate(timer: Timer, cache: CacheDtype) -> float:
    """Bytes of cached rows that a decode step reads per second, beyond a middle context."""
    model = decoder(512, 2)
    precision: Precision = "fp32" if cache == "fp32" else "bf16"
    rows = None if cache == precision else cache
    long = timer.step_s("decode", model, precision, LONG, rows)
    middle = timer.step_s("decode", model, precision, MIDDLE, rows)
    row = cache_bytes_per_token(model, CACHE_FORMATS[cache]) or 0
    return (LONG - MIDDLE) * row / max(long - middle, 1e-7)


def _pass_rates(timer: Timer) -> dict[str, dict[str, float]]:
    """Operations per second of a prefill, of products with weights and of attention."""
    products: dict[str, float] = {}
    attention: dict[str, float] = {}
    for precision in PRECISIONS:
        short_s, short = _prefill(timer, NARROW, SHORT_PROMPT, precision)
        long_s, long = _prefill(timer, NARROW, LONG_PROMPT, precision)
        # What the short prompt takes, the long one takes as often as it has more products.
        times = long.weights.flops / short.weights.flops
        attended = long.attention.flops - times * short.attention.flops
        attention[precision] = attended / max(long_s - times * short_s, 1e-7)
        wide_s, wide = _prefill(timer, WIDE, SHORT_PROMPT, precision)
        rest_s = wide_s - wide.attention.flops / attention[precision]
        products[precision] = wide.weights.flops / max(rest_s, 1e-7)
    return {"product_flops_per_s": products, "attention_flops_per_s": attention}


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
