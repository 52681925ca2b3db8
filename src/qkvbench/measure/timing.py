"""Timing of workloads: arms interleaved in rounds of one process; memory in a process each."""

import gc
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from qkvbench import cost
from qkvbench.backends import Backend, Kind, Workload, find
from qkvbench.measure.conditions import Conditions
from qkvbench.measure.machine import activity, others
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.measure.samples import Step
from qkvbench.model import Model
from qkvbench.model.rng import generator

WARM_UP_STEPS = 3
WARM_UP_S = 1.0
# Blocks of rounds; between two blocks every arm's tensors are reallocated. The fewest rounds, one
# in each block, still give an interval.
BLOCKS = 16
LEAST_ROUNDS = 6
# An arm evicts another's data from the processor's caches within milliseconds: a shorter step than
# this is preceded by one that is not timed.
SETTLED_S = 0.1
# The share of the time that reallocation may take.
MOVING = 0.2
# Prompts longer than this are first timed at this length, to estimate their time.
PILOT = 256


def _involuntary_switches() -> int:
    """How often the system has preempted this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Clocks:
    """The clocks of a timed step.

    ``own_s`` excludes the time of other processes, if such a clock exists; ``switches`` counts
    preemptions of this process.
    """

    now_s: Callable[[], float] = time.perf_counter
    own_s: Callable[[], float] = time.perf_counter
    switches: Callable[[], int] = _involuntary_switches


@dataclass(frozen=True)
class Allowance:
    """A time limit: rounds for `rounds_s`, and nothing after `ends_s` on the clock.

    The clock is `time.monotonic`, which all processes of a machine share.
    """

    rounds_s: float
    ends_s: float = math.inf


@dataclass(frozen=True)
class Timed:
    """The steps of one arm, one list for each block of rounds.

    ``ready_s`` is the time to build and warm up the arm again.
    """

    blocks: list[list[Step]]
    tokens: int
    cache_bytes: int | None
    kernel: str
    ready_s: float


@dataclass(frozen=True)
class Untimed:
    """An arm that could not be timed, and why."""

    variant: str
    reason: str


@dataclass(frozen=True)
class TooLong:
    """Work that was not started because its estimated `seconds` exceed the time limit."""

    seconds: float


@dataclass(frozen=True)
class Times:
    """The times of all arms in one kind of work, and the conditions around them.

    ``threads`` are those of one operation, and the operations at a time; ``other_cores`` were busy
    with other processes, None if unknown.
    """

    arms: list[Timed | Untimed]
    threads: tuple[int, int]
    other_cores: float | None


@dataclass(frozen=True)
class Arm:
    """A workload that is built and warm; the seconds to build it, to move it, and of a step."""

    work: Workload
    ready_s: float
    move_s: float
    step_s: float

    @property
    def turn_s(self) -> float:
        """Seconds of one round, including an untimed step before it."""
        return self.step_s * (2 if self.step_s < SETTLED_S else 1)


class NoTimeError(Exception):
    """The estimated seconds of the next work exceed the time limit."""


def times(
    kind: Kind, models: Sequence[Model], conditions: Conditions, allowance: Allowance
) -> Times | TooLong:
    """Time one kind of work with each model, in rounds of one step each, so that all share drift.

    A model that cannot be built or warmed up is left out.
    """
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)
    try:
        arms = _ready(backend, kind, models, conditions, allowance)
    except NoTimeError as error:
        return TooLong(error.args[0])
    before = activity()
    # Processor time equals the undisturbed time of a step only if one thread does all the work.
    simple = conditions.threads == 1 and str(backend.device()) == "cpu"
    clocks = Clocks(own_s=time.process_time if simple else time.perf_counter)
    built = [arm for arm in arms if isinstance(arm, Arm)]
    with _undisturbed():
        blocks = iter(interleaved(built, allowance, clocks))
    other_cores = others(before, activity())
    timed = [_timed(arm, next(blocks)) if isinstance(arm, Arm) else arm for arm in arms]
    return Times(timed, backend.threads(), other_cores)


def memory(kind: Kind, model: Model, conditions: Conditions) -> int:
    """Bytes that the model, its cache and this work add to a fresh process.

    RuntimeError if the model cannot do the work.
    """
    backend = find(conditions.backend)
    backend.prepare(conditions.threads)
    # The first steps of a process load libraries, which take more memory than a small model.
    _warm(backend, kind, model, conditions, 1)
    before = reset_peak_memory(backend)
    held = _warm(backend, kind, model, conditions, conditions.context)
    if isinstance(held, Untimed):
        raise RuntimeError(held.reason)
    return max(0, peak_bytes(backend) - before)


def interleaved(
    arms: Sequence[Arm], allowance: Allowance, clocks: Clocks
) -> list[list[list[Step]]]:
    """The steps of each arm: a list for each block of rounds, of equal length for all arms.

    Each round times every arm once, in a new random order. There are at least LEAST_ROUNDS.
    """
    if not arms:
        return []
    began = clocks.now_s()
    # One slower step under a profiler follows the rounds.
    closing_s = 0.3 + 3 * sum(arm.step_s for arm in arms)
    left_s = allowance.ends_s - time.monotonic() - closing_s
    rounds_s = max(0.0, min(allowance.rounds_s, left_s))
    moving_s = sum(arm.move_s for arm in arms)
    blocks = min(BLOCKS, max(LEAST_ROUNDS, int(MOVING * rounds_s / max(moving_s, 1e-9))))
    rng = generator(0, "measure", "order of turns")
    samples: list[list[list[Step]]] = [[] for _ in arms]
    for block in range(blocks):
        if block >= LEAST_ROUNDS and clocks.now_s() - began >= rounds_s:
            break
        if block and clocks.now_s() - began < rounds_s:
            for place in rng.permutation(len(arms)):
                arms[place].work.move()
        for each in samples:
            each.append([])
        while not samples[0][-1] or clocks.now_s() - began < rounds_s * (block + 1) / blocks:
            for place in rng.permutation(len(arms)):
                samples[place][-1].append(_turn(arms[place], clocks))
    return samples


def _turn(arm: Arm, clocks: Clocks) -> Step:
    step = arm.work.step
    if arm.step_s < SETTLED_S:
        step()
    switches = clocks.switches()
    own_before = clocks.own_s()
    before = clocks.now_s()
    step()
    seconds = clocks.now_s() - before
    own_s = clocks.own_s() - own_before
    interrupted = clocks.switches() > switches
    return Step(seconds, interrupted, own_s if interrupted else seconds)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect garbage before the block, and not during it."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _timed(arm: Arm, blocks: list[list[Step]]) -> Timed:
    work = arm.work
    return Timed(blocks, work.tokens, work.cache_bytes, work.kernel(), arm.ready_s)


def _ready(
    backend: Backend,
    kind: Kind,
    models: Sequence[Model],
    conditions: Conditions,
    allowance: Allowance,
) -> list[Arm | Untimed]:
    """The arms, built and warm; NoTimeError as soon as they are estimated to exceed the limit."""
    if kind != "decode" and conditions.context > PILOT and allowance.ends_s < math.inf:
        step_s = _estimated_step_s(backend, kind, models[0], conditions)
        _check_time(len(models) * (2 + LEAST_ROUNDS) * step_s, allowance)
    arms: list[Arm | Untimed] = []
    for model in models:
        arm = _warm(backend, kind, model, conditions, conditions.context)
        arms.append(arm if isinstance(arm, Untimed) else _move(arm))
        built = [arm for arm in arms if isinstance(arm, Arm)]
        if built:
            slowest = max(built, key=lambda arm: arm.ready_s)
            remaining = len(models) - len(arms)
            turns_s = sum(arm.turn_s for arm in built) + remaining * slowest.turn_s
            _check_time(remaining * slowest.ready_s + LEAST_ROUNDS * turns_s, allowance)
    return arms


def _move(arm: Arm) -> Arm:
    """The arm with its tensors reallocated, and how long that took."""
    began = time.perf_counter()
    arm.work.move()
    return replace(arm, move_s=time.perf_counter() - began)


def _check_time(seconds: float, allowance: Allowance) -> None:
    if time.monotonic() + seconds > allowance.ends_s:
        raise NoTimeError(seconds)


def _estimated_step_s(backend: Backend, kind: Kind, model: Model, conditions: Conditions) -> float:
    """Estimated seconds of a step, from a short one and the multiply-accumulates of both."""
    pilot = _warm(backend, kind, model, replace(conditions, batch=1), PILOT)
    if isinstance(pilot, Untimed):
        return 0.0
    longer = cost.macs(model, conditions.context) / cost.macs(model, PILOT)
    return pilot.step_s * longer * conditions.batch


def _warm(
    backend: Backend, kind: Kind, model: Model, conditions: Conditions, context: int
) -> Arm | Untimed:
    """A workload after its first steps, or the reason why the model has none."""
    began = time.perf_counter()
    try:
        work = backend.workload(
            kind,
            model,
            conditions.precision,
            context=context,
            batch=conditions.batch,
            rows=conditions.cache,
        )
        stepping = time.perf_counter()
        built_s = stepping - began
        steps_s: list[float] = []
        while len(steps_s) < WARM_UP_STEPS and time.perf_counter() - stepping < WARM_UP_S:
            before = time.perf_counter()
            work.step()
            steps_s.append(time.perf_counter() - before)
    except Exception as error:
        # An error in one arm must not prevent the timing of the others.
        return Untimed(model.variant, f"{type(error).__name__}: {error}")
    step_s = min(steps_s)
    # The minimum, because the first steps of a process load libraries.
    return Arm(work, built_s + len(steps_s) * step_s, move_s=0.0, step_s=step_s)
