"""How many runs this machine has room for, so that none of them is killed for want of memory."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

from qkvbench.backends import find
from qkvbench.cost import parameters, step_memory
from qkvbench.cost.units import bytes_text
from qkvbench.experiment import Experiment
from qkvbench.measure.machine import cores
from qkvbench.sweep.engines import Place, Room
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import Task

# What is left to everything else of what is free now.
SHARE = 0.9
# Weights, gradients and two moments, where more of a step is not computed.
COPIES = 4 * 4


def here(place: Place) -> Room:
    """As many as are wanted, or one for each `threads` cores; fewer where memory has no room.

    An accelerator is used by one run at a time, unless more are wanted.
    """
    alone = str(find(place.backend).device()) != "cpu"
    jobs = place.wanted or (1 if alone else max(1, cores() // place.threads))
    if not place.bytes:
        return Room(jobs)
    free = SHARE * free_bytes()
    fit = max(1, int(free // place.bytes))
    if fit >= jobs:
        return Room(jobs)
    return Room(
        fit,
        f"{_runs(fit)} at a time and not {jobs}: one holds up to {bytes_text(place.bytes)}, "
        f"and {bytes_text(int(free))} of memory may be used.",
    )


def held_bytes(
    experiments: Iterable[Experiment],
    tasks: Mapping[TaskRef, Task],
    process: int,
    joined: Callable[[Experiment], int],
) -> int:
    """What the largest process holds: its steps, computed, and what it takes anyway.

    `joined` is how many runs like this one are trained in one program.
    """
    steps = [joined(each) * _step(each, tasks[each.task]) for each in experiments]
    return process + max(steps, default=0)


def free_bytes() -> int:
    """Memory that is free on this machine, or within the bound of the container."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        bound = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        return min(free, max(0, int(bound) - int(used)))
    except (OSError, ValueError):
        # No such bound, or none that is a number.
        return free


def _step(experiment: Experiment, task: Task) -> int:
    try:
        return step_memory(experiment, task.tokens).total
    except ValueError:
        # A model that reads two inputs: of its step at least what is learned is known.
        return COPIES * parameters(experiment.model).total


def _runs(count: int) -> str:
    return "One run" if count == 1 else f"{count} runs"
