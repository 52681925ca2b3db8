"""This machine: as many fresh processes at a time as its cores and memory allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from qkvbench.sweep.capacity import local_capacity
from qkvbench.sweep.engines import Capacity, RunContext
from qkvbench.sweep.job import Job, perform
from qkvbench.sweep.local import Child, Workers
from qkvbench.train.multi_process import ProcessFailure


@dataclass(frozen=True)
class Options:
    """No options."""


class Engine:
    """Processes of this machine."""

    workers: Workers
    running: list[tuple[Child, Job]]

    def __init__(self, context: RunContext, _options: Options) -> None:
        self.context = context
        self.workers = Workers(context.backend)
        self.running = []

    def __enter__(self) -> Self:
        """Ready; the fork server starts with the first job."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all jobs."""
        self.stop()

    def capacity(self) -> Capacity:
        """As many jobs as there are cores for, if memory allows."""
        return local_capacity(self.context)

    def start(self, jobs: Sequence[Job]) -> None:
        """A process for each job."""
        self.running += [(self.workers.start(perform, job), job) for job in jobs]

    def poll(self, timeout_s: float) -> Iterator[tuple[Job, ProcessFailure | None]]:
        """The jobs whose process has ended."""
        for child, answer in self.workers.poll(timeout_s):
            job = next(job for each, job in self.running if each is child)
            self.running = [pair for pair in self.running if pair[0] is not child]
            yield job, answer if isinstance(answer, ProcessFailure) else None

    def stop(self) -> None:
        """End the processes."""
        self.workers.stop()
        self.workers.children.clear()
        self.running.clear()


def missing_requirement() -> None:
    """None: this engine needs nothing."""
