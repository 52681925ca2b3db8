"""Ray: tasks on this machine or on the nodes of a cluster, each in a fresh process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

from qkvbench.sweep.capacity import local_capacity
from qkvbench.sweep.engines import Capacity, RunContext
from qkvbench.sweep.job import Job, perform
from qkvbench.sweep.local import GRACE_S
from qkvbench.train.multi_process import ProcessFailure


@dataclass(frozen=True)
class Options:
    """``address`` of a cluster (auto, or HOST:PORT); empty starts a local one.

    ``gpus`` for each run may be a fraction.
    """

    address: str = ""
    gpus: float = 0.0


class Engine:
    """Tasks of a Ray cluster."""

    running: dict[Any, Job]

    def __init__(self, context: RunContext, options: Options) -> None:
        self.context, self.options = context, options
        self.running = {}

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one on this machine with its capacity."""
        import ray

        if self.options.address:
            ray.init(address=self.options.address, log_to_driver=False)
        else:
            ray.init(
                num_cpus=local_capacity(self.context).jobs * self.context.threads,
                include_dashboard=False,
                log_to_driver=False,
            )
        # No retries by Ray: the sweeper retries, as with every engine.
        self.perform = ray.remote(
            max_calls=1,
            max_retries=0,
            num_cpus=self.context.threads,
            num_gpus=self.options.gpus,
        )(_perform)
        return self

    def __exit__(self, *_: object) -> None:
        """End the tasks and disconnect."""
        import ray

        self.stop()
        ray.shutdown()

    def capacity(self) -> Capacity:
        """As many jobs as requested, or as the cluster has cores or GPUs for."""
        import ray

        if not self.options.address:
            return local_capacity(self.context)
        resources = ray.cluster_resources()
        fitting = resources.get("CPU", 1) // self.context.threads
        if self.options.gpus:
            fitting = min(fitting, resources.get("GPU", 0) // self.options.gpus)
        return Capacity(self.context.jobs or max(1, int(fitting)))

    def start(self, jobs: Sequence[Job]) -> None:
        """A task for each job."""
        for job in jobs:
            self.running[self.perform.remote(job)] = job

    def poll(self, timeout_s: float) -> Iterator[tuple[Job, ProcessFailure | None]]:
        """The jobs whose task has ended."""
        import ray

        if not self.running:
            return
        ended, _ = ray.wait(list(self.running), timeout=timeout_s)
        for task in ended:
            yield self.running.pop(task), _failure(task)

    def stop(self) -> None:
        """Cancel the tasks as Ctrl-C would, wait a little, and kill those that still run."""
        import ray

        tasks = list(self.running)
        try:
            for task in tasks:
                ray.cancel(task)
            if tasks:
                ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_S)
        finally:
            for task in tasks:
                ray.cancel(task, force=True)
            self.running.clear()


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("ray") is None:
        return "The engine ray needs Ray: ./qkv setup ray"
    return None


def _perform(job: Job) -> None:
    """Carry out the job, in a process of Ray's."""
    perform(job)


def _failure(task: Any) -> ProcessFailure | None:
    """How an ended task failed; None if it did not."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(task)
    except RayTaskError as error:
        return ProcessFailure("failed", f"{type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        lines = str(error).strip().splitlines()
        return ProcessFailure("killed", f"{type(error).__name__}: {lines[0] if lines else ''}")
    return None
