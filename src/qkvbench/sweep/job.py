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
from qkvbench.sweep.claims import Claim, Claims, LostError, beating
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
    """Carry the job out and write its record; nothing, where the run is another's by now.

    It goes on from the newest checkpoint in the store, which are gone once the record is there.
    """
    store = Store(job.store)
    checkpoints = Checkpoints(store.checkpoints)
    claims = Claims(store.claims)
    claim = claims.adopted(job.claim)
    if claim is None:
        return
    with beating(claims, claim) as tell:
        record = _WORKS[job.work](job.experiment, tell, checkpoints=checkpoints)
        try:
            tell(0, 0.0)
        except LostError:
            return
        store.write_run(record)
        if record.status == "done":
            checkpoints.remove(job.experiment)
    claims.release(claim)
