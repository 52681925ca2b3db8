"""The sweeper: keeps a window of leased runs busy on an engine, and retries killed processes.

The store is the only truth. When a process has ended, the run's record is read from the store,
whoever wrote it: several sweepers can share the runs of one store, and none is run twice.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.results.store import Store
from qkvbench.sweep.engines import Engine
from qkvbench.sweep.job import Job
from qkvbench.sweep.leases import HEARTBEAT_S, Lease, Leases, this_process
from qkvbench.train.dependencies import Phase
from qkvbench.train.multi_process import ProcessFailure

# A killed process may have competed with another for memory; after so many attempts it is at fault.
TRIES = 3
# How long to wait for the end of a run, or between two looks at runs that others have leased.
POLL_S = 0.5

Mark = tuple[int, int] | None


@dataclass
class _Running:
    """A run in progress, the mark of its record before it, and its last known progress."""

    job: Job
    before: Mark
    checked_s: float
    step: int = 0


class Sweeper:
    """Carries out the runs of a store on an engine, up to `jobs` at a time."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        jobs: int,
        *,
        on_step: Callable[[Experiment, int, float], None],
        failure_record: Callable[[Experiment, ProcessFailure], Record],
    ) -> None:
        """`failure_record` is the record of a run whose process could not write one."""
        self.store, self.engine, self.jobs = store, engine, jobs
        self.on_step, self.failure_record = on_step, failure_record
        self.leases = Leases(store.leases)
        self.running: dict[str, _Running] = {}
        self.tries: Counter[str] = Counter()

    def run_all(
        self, phase: Phase, before: Mapping[Experiment, Mark]
    ) -> Iterator[tuple[Experiment, Record]]:
        """The record of each run as it ends, here or in another sweeper.

        A record whose mark differs from `before` was written since the study was planned, and
        counts, unless it is of a run that another sweeper interrupted.
        """
        waiting = deque(phase.experiments)
        while waiting or self.running:
            jobs, records = self._acquire(phase, waiting, before)
            yield from records
            if jobs:
                self.engine.start(jobs)
            if not self.running:
                # Other sweepers have leased all remaining runs.
                time.sleep(POLL_S if waiting else 0)
                continue
            for job, failure in self.engine.poll(POLL_S):
                record = self._finish(self.running.pop(job.experiment.id), failure)
                if record is None:
                    waiting.append(job.experiment)
                else:
                    yield job.experiment, record
            self._check_leases()

    def stop(self) -> None:
        """End all runs in progress, and record those as interrupted that left no record."""
        try:
            self.engine.stop()
        finally:
            for running in self.running.values():
                job = running.job
                unchanged = self.store.mark(job.experiment) == running.before
                if unchanged and self._take_back(job.lease):
                    failure = ProcessFailure("interrupted", "The study was interrupted.")
                    self.store.write_run(self.failure_record(job.experiment, failure))
                self.leases.release(job.lease)
            self.running.clear()

    def _acquire(
        self, phase: Phase, waiting: deque[Experiment], before: Mapping[Experiment, Mark]
    ) -> tuple[list[Job], list[tuple[Experiment, Record]]]:
        """Lease as many waiting runs as fit; and the records that others wrote meanwhile."""
        jobs: list[Job] = []
        records: list[tuple[Experiment, Record]] = []
        # Runs of a dead sweeper that are still in progress on this machine count, too.
        free = self.jobs - self.leases.orphans() - len(self.running)
        for _ in range(len(waiting)):
            if len(jobs) >= free:
                break
            experiment = waiting.popleft()
            lease = self.leases.acquire(experiment.id)
            if lease is None:
                waiting.append(experiment)
                continue
            mark = before[experiment]
            record = self._new_record(experiment, mark)
            if record is not None and record.status == "interrupted":
                # Another sweeper was stopped, and left its run to this one.
                mark, record = self.store.mark(experiment), None
            if record is not None:
                self.leases.release(lease)
                records.append((experiment, record))
                continue
            job = Job(experiment, self.store.path.absolute(), lease, phase.saves_weights)
            jobs.append(job)
            self.running[experiment.id] = _Running(job, mark, time.monotonic())
        return jobs, records

    def _new_record(self, experiment: Experiment, before: Mark) -> Record | None:
        """The record that was written since its mark was `before`; None if there is none."""
        return None if self.store.mark(experiment) == before else self.store.run(experiment)

    def _finish(self, running: _Running, failure: ProcessFailure | None) -> Record | None:
        """The record of a job whose process has ended; None if the run must be tried again."""
        experiment, lease = running.job.experiment, running.job.lease
        record = self._new_record(experiment, running.before)
        if record is not None:
            self.leases.release(lease)
            return record
        if self.leases.is_superseded(lease):
            return None
        if failure is None:
            failure = ProcessFailure("failed", "The process ended without a record.")
        self.tries[experiment.id] += 1
        tries = self.tries[experiment.id]
        if failure.status in ("killed", "interrupted") and tries < TRIES:
            self.leases.release(lease)
            return None
        if tries > 1:
            reason = f"{failure.reason} It was tried {tries} times."
            failure = replace(failure, reason=reason)
        record = self.failure_record(experiment, failure)
        self.store.write_run(record)
        self.leases.release(lease)
        return record

    def _check_leases(self) -> None:
        """Report the progress of runs, and renew the leases of those still in a queue."""
        now_s = time.monotonic()
        for running in self.running.values():
            if now_s - running.checked_s < HEARTBEAT_S:
                continue
            running.checked_s = now_s
            lease = self.leases.current(running.job.lease)
            if lease is None or lease.token != running.job.lease.token:
                continue
            if lease.owner == this_process():
                self.leases.renew(lease)
            elif lease.step > running.step and lease.loss is not None:
                running.step = lease.step
                self.on_step(running.job.experiment, lease.step, lease.loss)

    def _take_back(self, lease: Lease) -> bool:
        """Make this process the owner again; False if another process took the run over."""
        now = self.leases.current(lease)
        if now is None or now.token != lease.token:
            return False
        return self.leases.renew(replace(now, owner=this_process())) is not None
