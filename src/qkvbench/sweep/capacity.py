"""How many runs fit on this machine at a time, so that none is killed for lack of memory."""

from collections.abc import Iterable, Mapping

from qkvbench.backends import find
from qkvbench.backends.common.free_memory import free_bytes
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


def _runs(count: int) -> str:
    return "One run" if count == 1 else f"{count} runs"
