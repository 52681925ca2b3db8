"""Decoding on the clock: arms interleaved in one process, memory in a process for each."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from qkvbench.backends import Backend, Decoding, find
from qkvbench.experiment import Precision
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

    backend: str = "torch"
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


@dataclass(frozen=True)
class Untimed:
    """An arm that could not be timed, and why."""

    variant: str
    reason: str


def decode_times(models: Sequence[Model], conditions: Conditions) -> list[Timed | Untimed]:
    """Time a decode step of each model, in rounds of one step each, so that drift hits all.

    A model that cannot be built or warmed up is left out; the others are timed all the same.
    """
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)
    arms = [_warm(backend, model, conditions, conditions.context) for model in models]
    ready = [arm for arm in arms if not isinstance(arm, Untimed)]
    samples: dict[int, list[float]] = {id(arm): [] for arm in ready}
    began = time.perf_counter()
    rounds = 0
    while ready and (rounds < LEAST_ROUNDS or time.perf_counter() - began < conditions.seconds):
        rounds += 1
        for arm in ready:
            before = time.perf_counter()
            arm.step()
            samples[id(arm)].append(time.perf_counter() - before)
    return [
        arm if isinstance(arm, Untimed) else Timed(samples[id(arm)], arm.cache_bytes, arm.kernel)
        for arm in arms
    ]


def decode_memory(model: Model, conditions: Conditions) -> int:
    """Bytes that the model, its cache and decoding add to a process that has done neither."""
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)
    # The first steps load what a framework loads once, which is more than a small model.
    _warm(backend, model, conditions, 1)
    before = level_bytes(backend)
    _held = _warm(backend, model, conditions, conditions.context)
    return max(0, peak_bytes(backend) - before)


def measurements(
    models: Sequence[Model],
    conditions: Conditions,
    call: Callable[..., Any],
) -> tuple[list[Measurement], list[Untimed]]:
    """Latency and memory of each model, and the models that have none.

    `call` runs a function in a fresh process and raises ChildProcessError where that dies.
    """
    times: list[Timed | Untimed] = call(decode_times, models, conditions)
    lacking = [each for each in times if isinstance(each, Untimed)]
    where = machine(str(find(conditions.backend).device()))
    done: list[Measurement] = []
    for model, timed in zip(models, times, strict=True):
        if isinstance(timed, Untimed):
            continue
        done.append(
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
                memory_bytes=call(decode_memory, model, conditions),
                cache_bytes=timed.cache_bytes,
                kernel=timed.kernel,
                machine=where,
            )
        )
    return done, lacking


def identity(model: Model, conditions: Conditions) -> str:
    """Sixteen hexadecimal digits that name a measurement in a store."""
    spec = TypeAdapter(Model).dump_python(model, mode="json")
    text = json.dumps([spec, asdict(conditions)], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _warm(
    backend: Backend, model: Model, conditions: Conditions, context: int
) -> Decoding | Untimed:
    """A decoder that has taken its first steps, or why there is none."""
    try:
        arm = backend.Decoding(model, conditions.precision, context=context, batch=conditions.batch)
        for _ in range(WARM_UP_STEPS):
            arm.step()
    except Exception as error:
        # Whatever is wrong with one arm, the others are timed.
        return Untimed(model.variant, f"{type(error).__name__}: {error}")
    return arm
