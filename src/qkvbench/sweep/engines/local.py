"""This machine: as many fresh processes at a time as cores and memory have room for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from qkvbench.sweep.capacity import here
from qkvbench.sweep.engines import Place, Room
from qkvbench.sweep.job import Died, Job, perform
from qkvbench.sweep.local import Child, Workers


@dataclass(frozen=True)
class Options:
    """Nothing is to be chosen."""


class Engine:
    """Processes of this machine."""

    workers: Workers
    under_way: list[tuple[Child, Job]]

    def __init__(self, place: Place, _options: Options) -> None:
        self.place = place
        self.workers = Workers(place.backend)
        self.under_way = []

    def __enter__(self) -> Self:
        """Ready; the server that forks processes begins with the first."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is still under way."""
        self.stop()

    def room(self) -> Room:
        """As many as there are cores for, if memory has room for them."""
        return here(self.place)

    def start(self, jobs: Sequence[Job]) -> None:
        """A process for each."""
        self.under_way += [(self.workers.begin(perform, job), job) for job in jobs]

    def ended(self, timeout_s: float) -> Iterator[tuple[Job, Died | None]]:
        """Those whose process has ended."""
        for child, answer in self.workers.ended(timeout_s):
            job = next(job for each, job in self.under_way if each is child)
            self.under_way = [pair for pair in self.under_way if pair[0] is not child]
            yield job, answer if isinstance(answer, Died) else None

    def stop(self) -> None:
        """End the processes."""
        self.workers.stop()
        self.workers.children.clear()
        self.under_way.clear()


def lacking() -> str | None:
    """It is everywhere."""
    return None
