"""How many runs fit on this machine at a time, so that none is killed for lack of memory."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from qkvbench.backends import find
from qkvbench.cost import step_memory
from qkvbench.cost.units import bytes_text
from qkvbench.experiment import Experiment
from qkvbench.measure.machine import cores
from qkvbench.sweep.engines import Capacity, RunContext
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import Task

# The share of free memory that runs may use.
SHARE = 0.9


def local_capacity(context: RunContext) -> Capacity:
    """As many runs as requested, or one for each `threads` cores; fewer if memory is short.

    One run at a time uses an accelerator, unless more are requested.
    """
    accelerated = str(find(context.backend).device()) != "cpu"
    jobs = context.jobs or (1 if accelerated else max(1, cores() // context.threads))
    if not context.run_bytes:
        return Capacity(jobs)
    free = SHARE * free_bytes()
    fitting = max(1, int(free // context.run_bytes))
    if fitting >= jobs:
        return Capacity(jobs)
    return Capacity(
        fitting,
        f"{_runs(fitting)} at a time and not {jobs}: each takes up to "
        f"{bytes_text(context.run_bytes)}, and {bytes_text(int(free))} of memory may be used.",
    )


def run_bytes(
    experiments: Iterable[Experiment], tasks: Mapping[TaskRef, Task], process: int
) -> int:
    """Memory of the largest run: `process` bytes for a process, and a computed training step."""
    steps = [
        step_memory(each, tasks[each.task].tokens, tasks[each.task].second_tokens).total
        for each in experiments
    ]
    return process + max(steps, default=0)


def free_bytes() -> int:
    """Free memory of this machine, or up to the limit of the container."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        # No limit, or "max".
        return free


def _runs(count: int) -> str:
    return "One run" if count == 1 else f"{count} runs"
