"""Measurements of arms as records: one kind of work after the other, within a time limit."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pydantic import TypeAdapter

from qkvbench.backends import KINDS, Kind, find
from qkvbench.measure.conditions import Conditions, identity
from qkvbench.measure.machine import machine
from qkvbench.measure.samples import percentiles, ratio, undisturbed_s
from qkvbench.measure.timing import Allowance, Timed, Times, TooLong, Untimed, memory, times
from qkvbench.model import Model
from qkvbench.results.record import Machine, Measurement, Surroundings, Timing

Answer = TypeVar("Answer")

# A process that exceeds the time limit by this much is killed; it was expected to end in time.
LATE_S = 0.5
# The share of the time that the first kind of work leaves to the others.
OTHERS = 0.6
NO_TIME = "No time was left for it."
# Seconds to start and end a process.
PROCESS_S = 0.4


class Call(Protocol):
    """Runs a function in a fresh process.

    Raises ChildProcessError if the process fails, TimeoutError if it has not returned at `until_s`.
    """

    def __call__(
        self, function: Callable[..., Answer], *arguments: object, until_s: float = ...
    ) -> Answer:
        """The function's result."""
        ...


@dataclass(frozen=True)
class LeftOut:
    """An observation that was not made, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Observation:
    """The measured arms; observations left out for lack of time; and those that failed."""

    arms: list[Measurement]
    left_out: list[LeftOut]
    failed: list[LeftOut]


@dataclass(frozen=True)
class _Before:
    """The machine before the first arm ran."""

    machine: Machine
    load: list[float]


def measurements(
    models: Sequence[Model], conditions: Conditions, call: Call
) -> tuple[list[Measurement], list[Untimed]]:
    """Decoding times and memory of each model, and the models that cannot decode: for a study."""
    before = _before(conditions)
    taken = call(times, "decode", models, conditions, Allowance(conditions.seconds))
    if not isinstance(taken, Times):
        raise TypeError("Without a time limit nothing is too long.")
    memories = {
        ("decode", place): call(memory, "decode", model, conditions)
        for place, model in enumerate(models)
        if isinstance(taken.arms[place], Timed)
    }
    untimed = [arm for arm in taken.arms if isinstance(arm, Untimed)]
    return _records(models, conditions, {"decode": taken}, memories, before), untimed


def kinds_of(model: Model) -> tuple[Kind, ...]:
    """The kinds of work that a model can do, in the order in which they are measured."""
    return KINDS if model.causal else ("forward",)


def observed(
    models: Sequence[Model],
    conditions: Conditions,
    call: Call,
    ends_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Observation:
    """All that can be measured until `ends_s` on `clock`, which all processes share.

    First each kind of work of all arms, then the memory of each arm. The rest is left out.
    """
    before = _before(conditions)
    calls = _Calls(call, ends_s, clock)
    kinds = kinds_of(models[0])
    taken: dict[Kind, Times] = {}
    for place, kind in enumerate(kinds):
        allowance = Allowance(_rounds_s(taken, len(kinds) - place, ends_s - clock()), ends_s)
        answer = calls.result(kind, 0.0, times, kind, models, conditions, allowance)
        if isinstance(answer, TooLong):
            calls.left_out.append(LeftOut(kind, _too_long(answer, ends_s - clock())))
        elif answer is not None:
            taken[kind] = answer
            for arm in answer.arms:
                if isinstance(arm, Untimed):
                    calls.failed.append(LeftOut(f"{kind} of {arm.variant}", arm.reason))
    memories: dict[tuple[str, int], int] = {}
    for kind, each in taken.items():
        for place, arm in enumerate(each.arms):
            if not isinstance(arm, Timed):
                continue
            what = f"memory of {kind}, {models[place].variant}"
            seconds = arm.ready_s + PROCESS_S
            held = calls.result(what, seconds, memory, kind, models[place], conditions)
            if held is not None:
                memories[kind, place] = held
    records = _records(models, conditions, taken, memories, before)
    return Observation(records, calls.left_out, calls.failed)


@dataclass
class _Calls:
    """Calls in processes, one after the other until time is up, and those that failed."""

    call: Call
    ends_s: float
    clock: Callable[[], float]
    left_out: list[LeftOut] = field(default_factory=list)
    failed: list[LeftOut] = field(default_factory=list)

    def result(
        self, what: str, seconds: float, function: Callable[..., Answer], *arguments: object
    ) -> Answer | None:
        """The function's result; None, with a note, if there was no time or it failed."""
        try:
            if self.clock() + seconds < self.ends_s:
                return self.call(function, *arguments, until_s=self.ends_s + LATE_S)
            self.left_out.append(LeftOut(what, NO_TIME))
        except TimeoutError:
            self.left_out.append(LeftOut(what, "It did not end in time."))
        except ChildProcessError as error:
            self.failed.append(LeftOut(what, str(error)))
        return None


def _rounds_s(taken: Mapping[Kind, Times], kinds_left: int, left_s: float) -> float:
    """Seconds for the rounds of the next kind of work, so that time is left for the others."""
    if not taken:
        return left_s * (1 - OTHERS if kinds_left > 1 else 0.5)
    # Each kind is built again to measure memory; the next kinds are assumed to take as long.
    ready_s = [
        sum(arm.ready_s + PROCESS_S for arm in each.arms if isinstance(arm, Timed))
        for each in taken.values()
    ]
    memory_s = sum(ready_s) + kinds_left * ready_s[-1]
    return max(0.0, left_s - min(memory_s, left_s / 3)) / kinds_left


def _too_long(answer: TooLong, left_s: float) -> str:
    return (
        f"The fewest rounds would take about {answer.seconds:.3g} s plus a start; "
        f"{max(0.0, left_s):.3g} s are left."
    )


def _before(conditions: Conditions) -> _Before:
    load = [round(each, 2) for each in os.getloadavg()]
    return _Before(machine(str(find(conditions.backend).device())), load)


def _records(
    models: Sequence[Model],
    conditions: Conditions,
    taken: Mapping[Kind, Times],
    memories: Mapping[tuple[str, int], int],
    before: _Before,
) -> list[Measurement]:
    records: list[Measurement] = []
    for place, model in enumerate(models):
        own: dict[Kind, Timed] = {
            kind: arm for kind, each in taken.items() if isinstance(arm := each.arms[place], Timed)
        }
        timings = {
            kind: _timing(
                arm,
                taken[kind].arms[0] if place else None,
                models[0].variant,
                memories.get((kind, place)),
            )
            for kind, arm in own.items()
        }
        if not timings:
            continue
        first = next(iter(timings.values()))
        decode = timings.get("decode")
        records.append(
            Measurement(
                id=identity(model, conditions),
                variant=model.variant,
                model=model.label,
                model_spec=TypeAdapter(Model).dump_python(model, mode="json"),
                backend=conditions.backend,
                precision=conditions.precision,
                cache=conditions.cache,
                threads=conditions.threads,
                context=conditions.context,
                batch=conditions.batch,
                samples=first.samples,
                decode_p50_s=decode and decode.percentiles_s["p50"],
                memory_bytes=decode and decode.memory_bytes,
                cache_bytes=own["decode"].cache_bytes if decode else None,
                kernel=first.kernel,
                machine=before.machine,
                timings=timings,
                surroundings=_surroundings(taken, before),
            )
        )
    return records


def _timing(
    arm: Timed, first: Timed | Untimed | None, first_variant: str, memory_bytes: int | None
) -> Timing:
    """One arm's timing; `first` is the arm that it is compared with, None for that arm itself."""
    steps = [step for block in arm.blocks for step in block]
    samples_s = undisturbed_s(steps)
    shown = percentiles(samples_s)
    return Timing(
        samples=len(samples_s),
        interrupted=sum(step.interrupted for step in steps),
        percentiles_s=shown,
        tokens_per_second=arm.tokens / shown["p50"],
        ratio=ratio(arm.blocks, first.blocks, first_variant) if isinstance(first, Timed) else None,
        memory_bytes=memory_bytes,
        kernel=arm.kernel,
    )


def _surroundings(taken: Mapping[Kind, Times], before: _Before) -> Surroundings:
    intra, inter = next(iter(taken.values())).threads
    busy = [each.other_cores for each in taken.values() if each.other_cores is not None]
    return Surroundings(
        load=before.load,
        intra_op_threads=intra,
        inter_op_threads=inter,
        other_cores=max(busy, default=None),
    )
