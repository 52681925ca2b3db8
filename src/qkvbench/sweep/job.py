"""One run as a process gets it: what to do, in which store, by whose claim.

It answers to the store and not to who gave it out, who may be dead by then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkvbench.experiment import Experiment
from qkvbench.results.record import Record, Status
from qkvbench.results.store import Store
from qkvbench.sweep.leases import Claim, Claims, LostError, beating
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import run, run_and_keep

Work = Literal["run", "keep"]


@dataclass(frozen=True)
class Job:
    """An experiment that is to be run, or run and its weights kept."""

    experiment: Experiment
    work: Work
    store: Path
    claim: Claim


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
    claim = claims.adopted(job.claim)
    if claim is not None:
        _carried_out(job, claim)


def _carried_out(job: Job, claim: Claim) -> None:
    experiment, work = job.experiment, _WORKS[job.work]
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
