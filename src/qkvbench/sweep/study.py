"""A study: runs and measures what its store lacks, and stores each result at once."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import psutil

from qkvbench import tasks
from qkvbench.cost.matched import with_arm
from qkvbench.data import DataRefusedError, DataUnavailableError
from qkvbench.experiment import Experiment
from qkvbench.measure.conditions import Conditions, identity
from qkvbench.measure.observe import measurements
from qkvbench.model import Model, parse_arm
from qkvbench.recipes import Study
from qkvbench.results.record import Preregistration, Record, StudyInfo, Tuning
from qkvbench.results.store import Store
from qkvbench.results.tuning import FACTORS, SEEDS, choose, tuning_ended
from qkvbench.sweep.capacity import run_bytes
from qkvbench.sweep.engines import EngineChoice, RunContext
from qkvbench.sweep.leases import Leases, heartbeat
from qkvbench.sweep.local import Workers
from qkvbench.sweep.sweeper import Mark, Sweeper
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import Task
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.dependencies import Phase, failed_dependency, in_order, phases
from qkvbench.train.multi_process import ProcessFailure
from qkvbench.train.run import now, record
from qkvbench.train.run_state import RunState


@runtime_checkable
class Progress(Protocol):
    """The events of a study, for a person to follow."""

    def on_tune(self, missing: int, total: int) -> None:
        """Learning rates are tuned first; so many of all runs that do it are missing."""
        ...

    def on_untuned(self, task: str, arm: str) -> None:
        """An arm has no rate on a task, because tuning runs failed: it does not run there."""
        ...

    def on_plan(self, missing: int, total: int) -> None:
        """So many of all runs are missing."""
        ...

    def on_capacity(self, why: str) -> None:
        """Fewer runs than requested fit at a time."""
        ...

    def on_prepare(self, task: str) -> None:
        """The data of a task are being read, and fetched first if necessary."""
        ...

    def on_missing_data(self, task: str, reason: str) -> None:
        """The data of a task are not available."""
        ...

    def on_step(self, run: Experiment, step: int, loss: float) -> None:
        """A run has taken a step."""
        ...

    def on_end(self, record: Record) -> None:
        """A run has ended, done or not."""
        ...

    def on_seeds(self, count: int, total: int) -> None:
        """Of `total` seeds the first `count` have ended for every arm and task; others run on."""
        ...

    def on_measure(self, arms: int) -> None:
        """The arms are being timed."""
        ...

    def on_unmeasured(self, reason: str) -> None:
        """The arms could not be timed; the runs are not affected."""
        ...


@tasks.read_once()
def run_study(
    study: Study,
    store: Store,
    *,
    command: str,
    jobs: int | None,
    fail_fast: bool,
    progress: Progress,
    engine: EngineChoice | None = None,
    preregistered: Preregistration | None = None,
) -> None:
    """Run and measure what the store lacks. The same call again resumes.

    Several calls may share a store, with different engines, too: the store alone decides what is
    missing. Without a number of `jobs`, runs on this machine use every core, or one run an
    accelerator.

    The learning rates of a tuned study are chosen first, from the store's records alone. The
    hypotheses of `preregistered` are stored before anything runs; those of the store stay there.

    An interrupt is raised again after the runs in progress are recorded as interrupted.
    """
    study = with_chosen_rates(study, store)
    models = models_to_measure(study)
    before = store.study()
    preregistered = (before and before.preregistered) or preregistered
    store.write_study(info(study, command, preregistered))
    threads = study.threads * study.devices
    settings = _Settings(study.backend, threads, store, jobs, engine or EngineChoice(), progress)
    with Workers(study.backend) as workers:
        tuning = study.tuning_experiments()
        if to_tune := [each for each in tuning if not tuning_ended(store.run(each))]:
            progress.on_tune(len(to_tune), len(tuning))
            with closing(_carried_out(tuning, in_order(to_tune), settings, workers)) as records:
                for record in records:
                    progress.on_end(record)
                    if fail_fast and not tuning_ended(record):
                        return
            study = with_chosen_rates(study, store)
            store.write_study(info(study, command, preregistered))
        experiments = runnable_experiments(study)
        for task, arm in untuned(study):
            progress.on_untuned(task, arm)
        missing = to_run(experiments, store)
        progress.on_plan(len(missing), len(dict.fromkeys([*experiments, *missing])))
        seeds = _Seeds(experiments, missing)
        with closing(_carried_out(experiments, missing, settings, workers)) as records:
            for record in records:
                progress.on_end(record)
                if fail_fast and record.status != "done":
                    return
                if (count := seeds.advance(record)) is not None:
                    progress.on_seeds(count, seeds.total)
        _measure(study, models, store, workers, progress)


def run_experiments(
    experiments: Sequence[Experiment],
    store: Store,
    *,
    jobs: int | None,
    progress: Progress,
    saves_weights: bool = False,
) -> list[Record]:
    """Run on this machine what the store lacks of these experiments; their records, in order.

    Final weights are kept if others depend on them, or all are.
    """
    first = experiments[0]
    settings = _Settings(
        first.backend, first.threads, store, jobs, EngineChoice(), progress, saves_weights
    )
    missing = to_run(experiments, store)
    progress.on_plan(len(missing), len(dict.fromkeys([*experiments, *missing])))
    with (
        Workers(first.backend) as workers,
        closing(_carried_out(experiments, missing, settings, workers)) as records,
    ):
        for record in records:
            progress.on_end(record)
    return [record for each in experiments if (record := store.run(each)) is not None]


class _Seeds:
    """How many seeds have ended for every arm and task, from the first one on."""

    def __init__(self, experiments: Sequence[Experiment], missing: Sequence[Experiment]) -> None:
        """The seeds of these experiments, of which some are missing; other runs do not count."""
        own = set(experiments)
        self.seed_of = {each.id: each.seed for each in missing if each in own}
        self.left = Counter(self.seed_of.values())
        self.total = 1 + max((each.seed for each in experiments), default=-1)
        self.count = self._first_left()

    def advance(self, record: Record) -> int | None:
        """The number of seeds, if this record is the last of one and others are left."""
        seed = self.seed_of.pop(record.id, None)
        if seed is not None:
            self.left[seed] -= 1
        before, self.count = self.count, self._first_left()
        return self.count if before < self.count < self.total else None

    def _first_left(self) -> int:
        return next((seed for seed in range(self.total) if self.left[seed]), self.total)


def with_chosen_rates(study: Study, store: Store) -> Study:
    """The study with the rates that its tuning runs in the store decide; others are left out."""
    plan = tuning_plan(study)
    if plan is None or plan.taken_from is not None:
        return study
    stored = (store.run(each) for each in study.tuning_experiments())
    return replace(study, rates=choose(plan, [each for each in stored if each is not None]))


def tuning_plan(study: Study) -> Tuning | None:
    """The ids of the study's tuning runs, and its rates; None if an arm has the task's own."""
    if not study.tuned and study.rates_of is None:
        return None
    own = study.rates_of is None
    return Tuning(
        factors=list(FACTORS) if own else [],
        seeds=list(SEEDS) if own else [],
        runs={
            task: {arm: [run.id for run in runs] for arm, runs in arms.items()}
            for task, arms in study.tuning_grid().items()
        },
        chosen={task: dict(arms) for task, arms in study.rates.items()},
        taken_from=study.rates_of,
    )


def runnable_experiments(study: Study) -> tuple[Experiment, ...]:
    """The runs of a study; of a tuned one, those of arms whose rate is known."""
    waiting = set(untuned(study))
    return tuple(run for run in study.experiments() if (str(run.task), run.arm) not in waiting)


def untuned(study: Study) -> tuple[tuple[str, str], ...]:
    """The tasks and arms of a tuned study whose rate is not known."""
    return tuple(
        (task, arm)
        for task, arms in study.tuning_grid().items()
        for arm in arms
        if arm not in study.rates.get(task, {})
    )


@dataclass(frozen=True)
class _Settings:
    """The store of the runs, and how they are carried out; `threads` is of each."""

    backend: str
    threads: int
    store: Store
    jobs: int | None
    engine: EngineChoice
    progress: Progress
    saves_weights: bool = False


def _carried_out(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    settings: _Settings,
    workers: Workers,
) -> Generator[Record, None, None]:
    """The record of each missing run of these experiments, as it ends."""
    store, progress = settings.store, settings.progress
    checkpoints = Checkpoints(store.checkpoints)
    if checkpoints.root.exists():
        for done in set(experiments).difference(missing):
            # The process that wrote its record may have been killed before it removed them.
            checkpoints.remove(done)
    found = {each.task: tasks.find(each.task) for each in [*experiments, *missing]}
    marks = {each: store.mark(each) for each in missing}
    prepared: dict[TaskRef, tuple[str | None, int]] = {}
    # Elsewhere a second batch would wait in a queue again.
    batches = _batches(missing, found) if settings.engine.name == "local" else [missing]
    for batch in batches:
        data = _prepare_data(batch, prepared, workers, progress)
        ready = [each for each in batch if each.task not in data.missing]
        context = RunContext(
            settings.backend,
            settings.threads,
            store.path.absolute(),
            settings.jobs,
            run_bytes(ready, found, data.process_bytes),
        )
        sweep = _Sweep(
            store, found, data, context, settings.engine, progress, settings.saves_weights
        )
        with closing(_records(batch, marks, sweep)) as records:
            yield from records


def _batches(
    missing: Sequence[Experiment], found: Mapping[TaskRef, Task]
) -> list[Sequence[Experiment]]:
    """The first seed's runs whose data are built in, then all others.

    So the first row is there before other data have been fetched.
    """
    if all(found[each.task].tier == "built-in" for each in missing):
        return [missing]
    linked = {each for run in missing if run.needed for each in (run, *run.needed)}
    seed = min((each.seed for each in missing), default=0)
    first = [
        each
        for each in missing
        if each.seed == seed and each not in linked and found[each.task].tier == "built-in"
    ]
    others = [each for each in missing if each not in set(first)]
    return [batch for batch in (first, others) if batch]


def _measure(
    study: Study, models: Sequence[Model], store: Store, workers: Workers, progress: Progress
) -> None:
    """Time all arms if the store lacks one: only arms that ran interleaved can be compared."""
    conditions = conditions_of(study, models)
    stored = {measured.id for measured in store.measurements().good}
    if all(identity(model, conditions) in stored for model in models):
        return
    leases = Leases(store.leases)
    lease = leases.acquire(identity(models[0], conditions))
    if lease is None:
        # Another sweeper is timing them.
        return
    progress.on_measure(len(models))
    try:
        with heartbeat(leases, lease):
            measured, untimed = measurements(models, conditions, workers.call)
    except ChildProcessError as error:
        progress.on_unmeasured(str(error))
        return
    finally:
        leases.release(lease)
    for measurement in measured:
        store.write_measurement(measurement)
    for arm in untimed:
        progress.on_unmeasured(f"{arm.variant}: {arm.reason}")


def to_run(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """The missing experiments and their dependencies, in the order in which they run.

    A dependency whose final weights are cached takes no time.
    """
    return in_order(each for each in experiments if store.done(each) is None)


@dataclass(frozen=True)
class _Data:
    """Why the data of a task are `missing`; memory of a process that has read the largest."""

    missing: Mapping[TaskRef, str]
    process_bytes: int


def _prepare_data(
    missing: Sequence[Experiment],
    prepared: dict[TaskRef, tuple[str | None, int]],
    workers: Workers,
    progress: Progress,
) -> _Data:
    """Fetch and prepare the data of each task once, before many processes need them.

    `prepared` has what earlier calls found, and is added to.
    """
    plain = dict.fromkeys(each.task.inputs for each in missing)
    for name in plain:
        if name not in prepared:
            progress.on_prepare(str(name))
            try:
                prepared[name] = workers.call(data_error, name)
            except ChildProcessError as error:
                prepared[name] = str(error), 0
            reason, _ = prepared[name]
            if reason is not None:
                progress.on_missing_data(str(name), reason)
    failed = {each.task: reason for each in missing if (reason := prepared[each.task.inputs][0])}
    return _Data(failed, max((prepared[name][1] for name in plain), default=0))


@dataclass(frozen=True)
class _Sweep:
    """The store, tasks and engine of a study's runs."""

    store: Store
    tasks: Mapping[TaskRef, Task]
    data: _Data
    context: RunContext
    engine: EngineChoice
    progress: Progress
    saves_weights: bool

    def failure_record(self, experiment: Experiment, failure: ProcessFailure) -> Record:
        """The record of a run whose process could not write one."""
        return failure_record(experiment, self.tasks[experiment.task], failure)


def _records(
    missing: Sequence[Experiment], marks: Mapping[Experiment, Mark], sweep: _Sweep
) -> Generator[Record, None, None]:
    """The record of each run. A run never starts if its data or a dependency is missing."""
    ended: dict[Experiment, Record] = {}
    if not missing:
        return
    with sweep.engine.open(sweep.context) as engine:
        capacity = engine.capacity()
        if capacity.why is not None:
            sweep.progress.on_capacity(capacity.why)
        sweeper = Sweeper(
            sweep.store,
            engine,
            capacity.jobs,
            on_step=sweep.progress.on_step,
            failure_record=sweep.failure_record,
        )
        with _stopped_if_interrupted(sweeper):
            for phase in phases(missing):
                ready: list[Experiment] = []
                for each in phase.experiments:
                    reason = sweep.data.missing.get(each.task) or failed_dependency(each, ended)
                    if reason is None:
                        ready.append(each)
                        continue
                    ended[each] = sweep.failure_record(each, ProcessFailure("failed", reason))
                    sweep.store.write_run(ended[each])
                    yield ended[each]
                saved = phase.saves_weights or sweep.saves_weights
                for each, record in sweeper.run_all(Phase(ready, saved), marks):
                    ended[each] = record
                    yield record


def data_error(task: TaskRef) -> tuple[str | None, int]:
    """Why a task's data are not available, or None; and this process's memory with them loaded."""
    try:
        data = tasks.find(task).load()
    except (DataRefusedError, DataUnavailableError) as error:
        return str(error), 0
    held = psutil.Process().memory_full_info()
    del data
    return None, getattr(held, "uss", held.rss)


def info(study: Study, command: str, preregistered: Preregistration | None = None) -> StudyInfo:
    """The description of a study that its store keeps."""
    models = models_to_measure(study)
    return StudyInfo(
        name=study.name,
        command=command,
        variants=list(dict.fromkeys(run.arm for run in study.experiments())),
        tasks=list(study.seeds),
        cost_task=study.cost_task,
        seeds=dict(study.seeds),
        threads=study.threads,
        precision=study.precision,
        backend=study.backend,
        runs=[run.id for run in runnable_experiments(study)],
        measurements=[identity(model, conditions_of(study, models)) for model in models],
        benchmarks=_benchmarks(study),
        tuning=tuning_plan(study),
        preregistered=preregistered,
    )


def _benchmarks(study: Study) -> dict[str, str]:
    """The benchmark and tier of each task; a person's own tasks are part of none."""
    found = {name: tasks.find(name) for name in study.seeds}
    return {
        name: f"{task.benchmark} ({task.tier})"
        for name, task in found.items()
        if task.tier != "own"
    }


def models_to_measure(study: Study) -> list[Model]:
    """One decoder for each variant, of the study's cost task; none without one."""
    if study.cost_task is None:
        return []
    base, tokens = study.model_of(study.cost_task), tasks.find(study.cost_task).tokens
    return [with_arm(base, parse_arm(arm), tokens=tokens) for arm in study.variants]


def conditions_of(study: Study, models: Sequence[Model]) -> Conditions:
    """The measuring conditions: the default context, or the longest that all decoders can read."""
    usual = Conditions(backend=study.backend, precision=study.precision, threads=study.threads)
    if study.smoke:
        usual = replace(usual, context=256, seconds=0.0)
    bounds = [model.longest - 1 for model in models if model.longest]
    return replace(usual, context=min([usual.context, *bounds]))


def failure_record(experiment: Experiment, task: Task, failure: ProcessFailure) -> Record:
    """The record of a run whose process could not write one."""
    state = RunState(started=now())
    return record(experiment, task, "unknown", state, failure.status, failure.reason)


@contextmanager
def _stopped_if_interrupted(sweeper: Sweeper) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        sweeper.stop()
        raise
