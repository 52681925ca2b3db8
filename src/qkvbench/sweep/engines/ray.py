"""Ray: tasks on this machine or on the nodes of a cluster, each in a fresh process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

from qkvbench.sweep.capacity import here
from qkvbench.sweep.engines import Place, Room
from qkvbench.sweep.job import Died, Job, perform
from qkvbench.sweep.local import GRACE_S


@dataclass(frozen=True)
class Options:
    """Where tasks go: ``address`` is a cluster's (auto, or HOST:PORT); empty: one made here.

    ``gpus`` is for a run, and may be a share of one.
    """

    address: str = ""
    gpus: float = 0.0


class Engine:
    """Tasks of a Ray cluster."""

    under_way: dict[Any, Job]

    def __init__(self, place: Place, options: Options) -> None:
        self.place, self.options = place, options
        self.under_way = {}

    def __enter__(self) -> Self:
        """Join the cluster, or begin one of this machine that has the room which there is."""
        import ray

        if self.options.address:
            ray.init(address=self.options.address, log_to_driver=False)
        else:
            ray.init(
                num_cpus=here(self.place).jobs * self.place.threads,
                include_dashboard=False,
                log_to_driver=False,
            )
        # Never tried again by Ray: the sweeper does that, as with every engine.
        self.perform = ray.remote(
            max_calls=1,
            max_retries=0,
            num_cpus=self.place.threads,
            num_gpus=self.options.gpus,
        )(_performed)
        return self

    def __exit__(self, *_: object) -> None:
        """End the tasks and leave the cluster."""
        import ray

        self.stop()
        ray.shutdown()

    def room(self) -> Room:
        """As many as the cluster has cores or GPUs for, unless others are wanted."""
        import ray

        if not self.options.address:
            return here(self.place)
        there = ray.cluster_resources()
        fit = there.get("CPU", 1) // self.place.threads
        if self.options.gpus:
            fit = min(fit, there.get("GPU", 0) // self.options.gpus)
        return Room(self.place.wanted or max(1, int(fit)))

    def start(self, jobs: Sequence[Job]) -> None:
        """A task for each."""
        for job in jobs:
            self.under_way[self.perform.remote(job)] = job

    def ended(self, timeout_s: float) -> Iterator[tuple[Job, Died | None]]:
        """Those that Ray knows as over."""
        import ray

        if not self.under_way:
            return
        over, _ = ray.wait(list(self.under_way), timeout=timeout_s)
        for task in over:
            yield self.under_way.pop(task), _how(task)

    def stop(self) -> None:
        """Cancel the tasks, as Ctrl-C would, wait a little, and end what is still there."""
        import ray

        tasks = list(self.under_way)
        try:
            for task in tasks:
                ray.cancel(task)
            if tasks:
                ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_S)
        finally:
            for task in tasks:
                ray.cancel(task, force=True)
            self.under_way.clear()


def lacking() -> str | None:
    """Why there is no Ray here."""
    if find_spec("ray") is None:
        return "The engine ray needs Ray: ./qkv setup ray"
    return None


def _performed(job: Job) -> None:
    """In a process of Ray's: carry it out."""
    perform(job)


def _how(task: Any) -> Died | None:
    """How a task that is over has ended."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(task)
    except RayTaskError as error:
        return Died("failed", f"{type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        lines = str(error).strip().splitlines()
        return Died("killed", f"{type(error).__name__}: {lines[0] if lines else ''}")
    return None
