"""A study carried out: what is missing is run and measured, and each result is kept at once."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, runtime_checkable

import psutil

from qkvbench import tasks
from qkvbench.backends import find
from qkvbench.cost.matched import with_arm
from qkvbench.data import DataRefusedError, DataUnavailableError
from qkvbench.experiment import Experiment
from qkvbench.measure.conditions import Conditions, identity
from qkvbench.measure.observe import measurements
from qkvbench.model import Model, parse_arm
from qkvbench.recipes import Study
from qkvbench.results.record import Record, StudyInfo
from qkvbench.results.store import Store
from qkvbench.sweep.capacity import held_bytes
from qkvbench.sweep.engines import Chosen, Place
from qkvbench.sweep.job import Died, Work
from qkvbench.sweep.leases import Claims, beating
from qkvbench.sweep.local import Workers
from qkvbench.sweep.sweeper import Sweeper
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import Task
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import no_start, now, record
from qkvbench.train.trained import Trained

# A program of more lanes takes as long for each of them, and more memory.
MOST_TOGETHER = 8


@runtime_checkable
class Progress(Protocol):
    """Who is told how a study goes on."""

    def planned(self, missing: int, total: int) -> None:
        """So many of all runs are to be done."""
        ...

    def bounded(self, why: str) -> None:
        """Fewer runs are under way at a time than was asked for."""
        ...

    def preparing(self, task: str) -> None:
        """The data of a task are read, and fetched first where they are not here yet."""
        ...

    def lacking(self, task: str, reason: str) -> None:
        """The data of a task cannot be had."""
        ...

    def stepped(self, run: Experiment, step: int, loss: float) -> None:
        """A run has taken a step."""
        ...

    def ended(self, record: Record) -> None:
        """A run has ended, one way or another."""
        ...

    def measuring(self, arms: int) -> None:
        """The arms are being timed."""
        ...

    def unmeasured(self, reason: str) -> None:
        """The arms could not be timed; what was learned stands all the same."""
        ...


def carry_out(
    study: Study,
    store: Store,
    *,
    command: str,
    jobs: int | None,
    fail_fast: bool,
    progress: Progress,
    engine: Chosen | None = None,
    seeds_together: bool | None = None,
) -> None:
    """Run and measure what the store lacks. The same call again goes on where it stopped.

    So does a call with another engine, or beside this one: the store alone says what is done. On
    this machine every core is used without a number of `jobs`, or an accelerator by one run.

    With `seeds_together` the seeds of an arm are trained in one program, None: where that pays.

    On an interrupt the runs under way are noted as such, and the interrupt goes on.
    """
    experiments = study.experiments()
    models = models_to_measure(study)
    store.write_study(info(study, command))
    missing = to_run(experiments, store)
    checkpoints = Checkpoints(store.checkpoints)
    if checkpoints.root.exists():
        for done in set(experiments).difference(missing):
            # Who wrote its record may have been killed before it could remove them.
            checkpoints.remove(done)
    # Looked at once: own data may be changed or gone before the study ends.
    known = {each.task: tasks.find(each.task) for each in [*experiments, *missing]}
    marks = {each: store.mark(each) for each in missing}
    planned = dict.fromkeys([*experiments, *missing])
    progress.planned(len(missing), len(planned))
    joined = _joined(study, together=seeds_together)
    with Workers(study.backend) as workers:
        data = _prepared(missing, workers, progress)
        ready = [each for each in missing if each.task not in data.lacking]
        place = Place(
            study.backend,
            study.threads * study.devices,
            store.path.absolute(),
            jobs,
            held_bytes(ready, known, data.process_bytes, joined),
        )
        how = _Swept(store, known, place, engine or Chosen(), progress, joined)
        with closing(_records(missing, marks, data, how)) as records:
            for ended in records:
                progress.ended(ended)
                if fail_fast and ended.status != "done":
                    return
        _measure(study, models, store, workers, progress)


def _measure(
    study: Study, models: Sequence[Model], store: Store, workers: Workers, progress: Progress
) -> None:
    """Time the arms, where the store lacks one: only what ran interleaved compares."""
    conditions = conditions_of(study, models)
    kept = {measured.id for measured in store.measurements().good}
    if all(identity(model, conditions) in kept for model in models):
        return
    claims = Claims(store.claims)
    claim = claims.take(identity(models[0], conditions))
    if claim is None:
        # Another sweeper is at it.
        return
    progress.measuring(len(models))
    try:
        with beating(claims, claim):
            measured, lacking = measurements(models, conditions, workers.call)
    except ChildProcessError as error:
        progress.unmeasured(str(error))
        return
    finally:
        claims.release(claim)
    for measurement in measured:
        store.write_measurement(measurement)
    for arm in lacking:
        progress.unmeasured(f"{arm.variant}: {arm.reason}")


def to_run(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """What is missing, in the order in which it is run: what others need comes first, once.

    It is asked for by what is missing alone, and takes no time where its weights are kept.
    """
    missing = [each for each in experiments if store.done(each) is None]
    needed = [first for each in missing for first in each.needed]
    needed.sort(key=lambda first: len(first.needed))
    return list(dict.fromkeys([*needed, *missing]))


@dataclass(frozen=True)
class _Data:
    """Why the data of a task cannot be had, and what a process holds that has read any of them."""

    lacking: Mapping[TaskRef, str]
    process_bytes: int


def _prepared(missing: Sequence[Experiment], workers: Workers, progress: Progress) -> _Data:
    """Fetch and prepare the data of each task once, before many processes ask for them."""
    reasons: dict[TaskRef, str | None] = {}
    largest = 0
    for name in dict.fromkeys(each.task for each in missing):
        plain = name.inputs
        if plain not in reasons:
            progress.preparing(str(plain))
            reasons[plain], held = workers.call(unavailable, plain)
            largest = max(largest, held)
            if (reason := reasons[plain]) is not None:
                progress.lacking(str(plain), reason)
    lacking = {each.task: reason for each in missing if (reason := reasons[each.task.inputs])}
    return _Data(lacking, largest)


@dataclass(frozen=True)
class _Swept:
    """With what a study's runs are carried out."""

    store: Store
    known: Mapping[TaskRef, Task]
    place: Place
    engine: Chosen
    progress: Progress
    joined: Callable[[Experiment], int]

    def lost(self, experiment: Experiment, how: Died) -> Record:
        """The record of a run whose process could not write one itself."""
        return lost(experiment, self.known[experiment.task], how)


def _records(
    missing: Sequence[Experiment],
    marks: Mapping[Experiment, tuple[int, int] | None],
    data: _Data,
    how: _Swept,
) -> Generator[Record, None, None]:
    """The record of each run. Where its data or its start cannot be had, it never begins."""
    ended: dict[Experiment, Record] = {}
    if not missing:
        return
    with how.engine.open(how.place) as engine:
        room = engine.room()
        if room.why is not None:
            how.progress.bounded(room.why)
        sweeper = Sweeper(
            how.store,
            engine,
            room.jobs,
            stepped=how.progress.stepped,
            lost=how.lost,
            joined=how.joined,
        )
        with _interrupts_noted(sweeper):
            for work, phase in _phases(missing):
                ready: list[Experiment] = []
                for each in phase:
                    reason = data.lacking.get(each.task) or _without_start(each, ended)
                    if reason is None:
                        ready.append(each)
                        continue
                    ended[each] = how.lost(each, Died("failed", reason))
                    how.store.write_run(ended[each])
                    yield ended[each]
                for each, kept in sweeper.swept(work, ready, marks):
                    ended[each] = kept
                    yield kept


def _joined(study: Study, *, together: bool | None) -> Callable[[Experiment], int]:
    """How many runs like one are trained in one program: as the person, or the backend, says."""
    match together:
        case None:
            return find(study.backend).joined
        case True:
            return lambda _: MOST_TOGETHER
        case False:
            return lambda _: 1


def _phases(missing: Sequence[Experiment]) -> Iterator[tuple[Work, list[Experiment]]]:
    """What can run at the same time, in order: runs whose weights are kept for others, the rest."""
    needed = {first for each in missing for first in each.needed}
    kept = [each for each in missing if each in needed]
    for _, alike in groupby(kept, key=lambda each: len(each.needed)):
        yield "keep", list(alike)
    yield "run", [each for each in missing if each not in needed]


def _without_start(experiment: Experiment, ended: Mapping[Experiment, Record]) -> str | None:
    """Why an experiment cannot begin that needs one that did not come to its end; None: it can."""
    for first in experiment.first:
        how = ended.get(first)
        if how is not None and how.status != "done":
            return no_start(first, how.status, how.reason)
    return None


def unavailable(task: TaskRef) -> tuple[str | None, int]:
    """Why the data of a task cannot be had, None where they are here by now; bytes of this process.

    The bytes are what it holds of its own once it has read the data.
    """
    try:
        data = tasks.find(task).load()
    except (DataRefusedError, DataUnavailableError) as error:
        return str(error), 0
    held = psutil.Process().memory_full_info()
    del data
    return None, getattr(held, "uss", held.rss)


def info(study: Study, command: str) -> StudyInfo:
    """What the store is made for."""
    experiments = study.experiments()
    models = models_to_measure(study)
    return StudyInfo(
        name=study.name,
        command=command,
        variants=list(dict.fromkeys(run.arm for run in experiments)),
        tasks=list(study.seeds),
        cost_task=study.cost_task,
        seeds=dict(study.seeds),
        threads=study.threads,
        precision=study.precision,
        backend=study.backend,
        runs=[run.id for run in experiments],
        measurements=[identity(model, conditions_of(study, models)) for model in models],
        benchmarks=_benchmarks(study),
    )


def _benchmarks(study: Study) -> dict[str, str]:
    """What each task is part of: what stands in packages is never the whole of that benchmark.

    What a person brings is part of nothing.
    """
    found = {name: tasks.find(name) for name in study.seeds}
    return {
        name: f"{task.benchmark} ({task.tier})"
        for name, task in found.items()
        if task.tier != "own"
    }


def models_to_measure(study: Study) -> list[Model]:
    """One decoder for each variant, of the task whose costs stand for the study's."""
    if study.cost_task is None:
        return []
    base, tokens = study.model_of(study.cost_task), tasks.find(study.cost_task).tokens
    return [with_arm(base, parse_arm(arm), tokens=tokens) for arm in study.variants]


def conditions_of(study: Study, models: Sequence[Model]) -> Conditions:
    """How the study's decoders are measured: at the usual context, or the longest they can read."""
    usual = Conditions(backend=study.backend, precision=study.precision, threads=study.threads)
    if study.smoke:
        usual = replace(usual, context=256, seconds=0.0)
    bounds = [model.longest - 1 for model in models if model.longest]
    return replace(usual, context=min([usual.context, *bounds]))


def lost(experiment: Experiment, task: Task, how: Died) -> Record:
    """The record of a run whose process could not write one itself."""
    return record(experiment, task, "unknown", now(), how.status, how.reason, Trained())


@contextmanager
def _interrupts_noted(sweeper: Sweeper) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        sweeper.interrupted()
        raise
