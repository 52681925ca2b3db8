"""One run as a worker process gets it: the experiment, the store to write to, and the lease.

A worker writes to the store, never to the process that started it, which may be dead by then.
"""

from dataclasses import dataclass
from pathlib import Path

from qkvbench.experiment import Experiment
from qkvbench.results.store import Store
from qkvbench.sweep.leases import Lease, LeaseLostError, Leases, heartbeat
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.dependencies import run_and_save, run_with_dependencies


@dataclass(frozen=True)
class Job:
    """An experiment to run. `saves_weights` if other experiments depend on its final weights."""

    experiment: Experiment
    store: Path
    lease: Lease
    saves_weights: bool = False


def perform(job: Job) -> None:
    """Run the job's experiment and write its record, unless another process took the run over.

    The run resumes from the newest checkpoint in the store. The checkpoints are removed when the
    record is written.
    """
    store = Store(job.store)
    checkpoints, leases = Checkpoints(store.checkpoints), Leases(store.leases)
    lease = leases.adopt(job.lease)
    if lease is None:
        return
    run = run_and_save if job.saves_weights else run_with_dependencies
    with heartbeat(leases, lease) as report:
        record = run(job.experiment, report, checkpoints=checkpoints)
        try:
            report(0, 0.0)
        except LeaseLostError:
            return
        store.write_run(record)
        if record.status == "done":
            checkpoints.remove(job.experiment)
    leases.release(lease)
