"""A window of runs under way on an engine: claimed, carried out, tried again where a process died.

The store is the only truth. A run's record is read from there when its process has ended, whoever
wrote it: several sweepers share the runs of one store, and none is carried out twice.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.results.store import Store
from qkvbench.sweep.engines import Engine
from qkvbench.sweep.job import Died, Job, Work
from qkvbench.sweep.leases import BEAT_S, Claim, Claims, me

# A process that was killed may have been in another's way; one that always is will always be.
TRIES = 3
# How often somebody else's runs are looked at while there is nothing of one's own to wait for.
LOOK_S = 0.5

Mark = tuple[int, int] | None


@dataclass
class _Running:
    """A run under way, what its record's mark was before, and how far it was heard to be."""

    job: Job
    before: Mark
    beaten_s: float
    step: int = 0


class Sweeper:
    """Carries out the runs of a store on an engine, so many at a time."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        jobs: int,
        *,
        stepped: Callable[[Experiment, int, float], None],
        lost: Callable[[Experiment, Died], Record],
    ) -> None:
        """`lost` is the record of a run whose process could not write one."""
        self.store, self.engine, self.jobs = store, engine, jobs
        self.stepped, self.lost = stepped, lost
        self.claims = Claims(store.claims)
        self.running: dict[str, _Running] = {}
        self.tries: Counter[str] = Counter()

    def swept(
        self, work: Work, experiments: Sequence[Experiment], before: Mapping[Experiment, Mark]
    ) -> Iterator[tuple[Experiment, Record]]:
        """The record of each run as it ends, here or in the hands of another sweeper.

        What has another mark than `before` was written since the study was planned, and stands.
        """
        waiting = deque(experiments)
        while waiting or self.running:
            begun, known = self._chosen(work, waiting, before)
            yield from known
            if begun:
                self.engine.start(begun)
            if not self.running:
                # All that is left is in the hands of others.
                time.sleep(LOOK_S if waiting else 0)
                continue
            for job, died in self.engine.ended(LOOK_S):
                experiment = job.experiment
                record = self._ended(self.running.pop(experiment.id), died)
                if record is None:
                    waiting.append(experiment)
                else:
                    yield experiment, record
            self._listen()

    def interrupted(self) -> None:
        """End what is under way, and note it as such unless it came to its end by itself."""
        try:
            self.engine.stop()
        finally:
            for running in self.running.values():
                job = running.job
                if self.store.mark(job.experiment) == running.before and self._mine(job.claim):
                    how = Died("interrupted", "The study was interrupted.")
                    self.store.write_run(self.lost(job.experiment, how))
                self.claims.release(job.claim)
            self.running.clear()

    def _chosen(
        self, work: Work, waiting: deque[Experiment], before: Mapping[Experiment, Mark]
    ) -> tuple[list[Job], list[tuple[Experiment, Record]]]:
        """What of the waiting is ours from now on, and what another has ended meanwhile."""
        begun: list[Job] = []
        known: list[tuple[Experiment, Record]] = []
        # What a dead sweeper has left under way here takes room, too.
        room = self.jobs - self.claims.orphans() - len(self.running)
        for _ in range(len(waiting)):
            if len(begun) >= room:
                break
            experiment = waiting.popleft()
            match self._begun(work, experiment, before[experiment]):
                case Record() as record:
                    known.append((experiment, record))
                case Job() as job:
                    begun.append(job)
                    self.running[experiment.id] = _Running(
                        job, before[experiment], time.monotonic()
                    )
                case None:
                    waiting.append(experiment)
        return begun, known

    def _begun(self, work: Work, experiment: Experiment, before: Mark) -> Job | Record | None:
        """The job that is now ours; the record where it is done by now; None: another has it."""
        claim = self.claims.take(experiment.id)
        if claim is None:
            return None
        if self.store.mark(experiment) != before:
            record = self.store.run(experiment)
            if record is not None:
                self.claims.release(claim)
                return record
        return Job(experiment, work, self.store.path.absolute(), claim)

    def _ended(self, running: _Running, died: Died | None) -> Record | None:
        """The record of a job whose process has ended; None where the run is to be tried again."""
        job = running.job
        experiment, claim = job.experiment, job.claim
        record = self.store.run(experiment)
        if self.store.mark(experiment) != running.before and record is not None:
            self.claims.release(claim)
            return record
        if self.claims.matching(claim):
            return None
        if died is None:
            died = Died("failed", "The process ended without a record.")
        self.tries[experiment.id] += 1
        tries = self.tries[experiment.id]
        if died.status in ("killed", "interrupted") and tries < TRIES:
            self.claims.release(claim)
            return None
        if tries > 1:
            died = Died("killed", f"{died.reason} It was tried {tries} times.")
        record = self.lost(experiment, died)
        self.store.write_run(record)
        self.claims.release(claim)
        return record

    def _listen(self) -> None:
        """Hear how far runs are; keep the claims of those that still wait in a queue."""
        now_s = time.monotonic()
        for running in self.running.values():
            if now_s - running.beaten_s < BEAT_S:
                continue
            running.beaten_s = now_s
            claim = self.claims.read(running.job.claim)
            if claim is None or claim.token != running.job.claim.token:
                continue
            if claim.owner == me():
                self.claims.beaten(claim)
            elif claim.step > running.step and claim.loss is not None:
                running.step = claim.step
                self.stepped(running.job.experiment, claim.step, claim.loss)

    def _mine(self, claim: Claim) -> bool:
        """Whether the run is still this claim's; it is then held by this process again."""
        now = self.claims.read(claim)
        if now is None or now.token != claim.token:
            return False
        return self.claims.beaten(replace(now, owner=me())) is not None
