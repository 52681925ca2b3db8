"""One run as a process gets it: what to do, in which store, by whose claim.

It answers to the store and not to who gave it out, who may be dead by then.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from qkvbench.backends import find
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record, Status
from qkvbench.results.store import Store
from qkvbench.sweep.leases import Claim, Claims, LostError, beating
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import run, run_and_keep

Work = Literal["run", "keep"]


@dataclass(frozen=True)
class Job:
    """An experiment that is to be run, or run and its weights kept.

    ``beside`` are others that are trained with it in one program, each with its own claim.
    """

    experiment: Experiment
    work: Work
    store: Path
    claim: Claim
    beside: tuple[tuple[Experiment, Claim], ...] = ()

    @property
    def runs(self) -> tuple[tuple[Experiment, Claim], ...]:
        """All that it carries out."""
        return ((self.experiment, self.claim), *self.beside)


@dataclass(frozen=True)
class Died:
    """A process that ended without an answer, and how."""

    status: Status
    reason: str


_WORKS: dict[Work, Callable[..., Record]] = {"run": run, "keep": run_and_keep}


def perform(job: Job) -> None:
    """Carry the job out and write its records; none, where the run is another's by now.

    It goes on from the newest checkpoint in the store, which are gone once the record is there.
    """
    claims = Claims(Store(job.store).claims)
    runs = [(each, mine) for each, claim in job.runs if (mine := claims.adopted(claim))]
    if len(runs) == 1:
        _carried_out(job, *runs[0], _WORKS[job.work])
    elif runs:
        _together(job, runs)


def _together(job: Job, runs: Sequence[tuple[Experiment, Claim]]) -> None:
    """Train several in one program: each is an ordinary run in a thread of its own."""
    group = find(job.experiment.backend).grouped([each for each, _ in runs])

    def member(experiment: Experiment, claim: Claim) -> None:
        try:
            _carried_out(job, experiment, claim, partial(run, group=group))
        finally:
            group.leave(experiment)

    with ThreadPoolExecutor(len(runs)) as threads:
        for ended in [threads.submit(member, *each) for each in runs]:
            ended.result()


def _carried_out(
    job: Job, experiment: Experiment, claim: Claim, work: Callable[..., Record]
) -> None:
    store = Store(job.store)
    checkpoints, claims = Checkpoints(store.checkpoints), Claims(store.claims)
    with beating(claims, claim) as tell:
        record = work(experiment, tell, checkpoints=checkpoints)
        try:
            tell(0, 0.0)
        except LostError:
            return
        store.write_run(record)
        if record.status == "done":
            checkpoints.remove(experiment)
    claims.release(claim)
