"""Decoding on the clock: arms interleaved in one process, memory in a process for each."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from qkvbench.backends import Decoding, find
from qkvbench.experiment import BackendName, Precision
from qkvbench.measure.machine import machine
from qkvbench.measure.memory import level_bytes, peak_bytes
from qkvbench.model import Model
from qkvbench.results.record import Measurement

WARM_UP_STEPS = 3
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Conditions:
    """What all arms of a measurement have in common.

    Each decode step attends over `context` cached tokens of each of `batch` sequences. After
    `seconds` no round begins, once the fewest rounds that make a median are done.
    """

    backend: BackendName = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    context: int = 4096
    batch: int = 4
    seconds: float = 20.0


@dataclass(frozen=True)
class Timed:
    """One arm's decode steps."""

    samples_s: list[float]
    cache_bytes: int
    kernel: str


def decode_times(models: Sequence[Model], conditions: Conditions) -> list[Timed]:
    """Time a decode step of each model, in rounds of one step each, so that drift hits all."""
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)
    size = {"context": conditions.context, "batch": conditions.batch}
    arms = [backend.Decoding(model, conditions.precision, **size) for model in models]
    for arm in arms:
        for _ in range(WARM_UP_STEPS):
            arm.step()
    samples: list[list[float]] = [[] for _ in arms]
    began = time.perf_counter()
    while len(samples[0]) < LEAST_ROUNDS or time.perf_counter() - began < conditions.seconds:
        for arm, times in zip(arms, samples, strict=True):
            before = time.perf_counter()
            arm.step()
            times.append(time.perf_counter() - before)
    return [
        Timed(times, arm.cache_bytes, arm.kernel) for arm, times in zip(arms, samples, strict=True)
    ]


def decode_memory(model: Model, conditions: Conditions) -> int:
    """Bytes that the model, its cache and decoding add to a process that has done neither."""
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)

    def decode(context: int) -> Decoding:
        size = {"context": context, "batch": conditions.batch}
        arm = backend.Decoding(model, conditions.precision, **size)
        for _ in range(WARM_UP_STEPS):
            arm.step()
        return arm

    # The first steps load what a framework loads once, which is more than a small model.
    decode(1)
    before = level_bytes()
    _held = decode(conditions.context)
    return max(0, peak_bytes() - before)


def measurements(
    models: Sequence[Model],
    conditions: Conditions,
    call: Callable[..., Any],
) -> list[Measurement]:
    """Latency and memory of each model; `call` runs a function in a fresh process."""
    times = call(decode_times, models, conditions)
    memory = [call(decode_memory, model, conditions) for model in models]
    where = machine(str(find(conditions.backend).device()))
    return [
        Measurement(
            id=identity(model, conditions),
            variant=model.variant,
            model=model.name,
            model_spec=TypeAdapter(Model).dump_python(model, mode="json"),
            backend=conditions.backend,
            precision=conditions.precision,
            threads=conditions.threads,
            context=conditions.context,
            batch=conditions.batch,
            samples=len(timed.samples_s),
            decode_p50_s=statistics.median(timed.samples_s),
            memory_bytes=added,
            cache_bytes=timed.cache_bytes,
            kernel=timed.kernel,
            machine=where,
        )
        for model, timed, added in zip(models, times, memory, strict=True)
    ]


def identity(model: Model, conditions: Conditions) -> str:
    """Sixteen hexadecimal digits that name a measurement in a store."""
    spec = TypeAdapter(Model).dump_python(model, mode="json")
    text = json.dumps([spec, asdict(conditions)], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]
