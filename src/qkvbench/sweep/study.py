"""A study carried out: what is missing is run and measured, and each result is kept at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, runtime_checkable

from qkvbench import tasks
from qkvbench.cost.matched import arm_text, parse_arm, with_arm
from qkvbench.data import DataRefusedError, DataUnavailableError
from qkvbench.experiment import Experiment
from qkvbench.measure.conditions import Conditions, identity
from qkvbench.measure.machine import cores
from qkvbench.measure.observe import measurements
from qkvbench.model import Model
from qkvbench.recipes import Study
from qkvbench.results.record import Record, StudyInfo
from qkvbench.results.store import Store
from qkvbench.sweep.local import Died, Workers
from qkvbench.tasks import Task
from qkvbench.train.loop import Trained
from qkvbench.train.run import now, record


@runtime_checkable
class Progress(Protocol):
    """Who is told how a study goes on."""

    def planned(self, missing: int, total: int) -> None:
        """So many of all runs are to be done."""
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
) -> None:
    """Run and measure what the store lacks. The same call again goes on where it stopped.

    Without a number of `jobs` every core is used, or an accelerator by one run at a time.

    On an interrupt the runs under way are noted as such, and the interrupt goes on.
    """
    experiments = study.experiments()
    # Looked at once: own data may be changed or gone before the study ends.
    known = {name: tasks.find(name) for name in study.seeds}
    models = models_to_measure(study)
    store.write_study(info(study, command))
    missing = [run for run in experiments if store.done(run) is None]
    progress.planned(len(missing), len(experiments))
    with Workers(study.backend) as workers:
        jobs = jobs or (1 if workers.accelerated else max(1, cores() // study.threads))
        with _interrupts_noted(workers, store, known):
            for experiment, answer in _answers(missing, workers, jobs, progress):
                ended = (
                    lost(experiment, known[experiment.task], answer)
                    if isinstance(answer, Died)
                    else answer
                )
                store.write_run(ended)
                progress.ended(ended)
                if fail_fast and ended.status != "done":
                    return
        conditions = conditions_of(study, models)
        kept = {measured.id for measured in store.measurements().good}
        # One is missing: all are measured again, for only what ran interleaved compares.
        if any(identity(model, conditions) not in kept for model in models):
            progress.measuring(len(models))
            try:
                measured, lacking = measurements(models, conditions, workers.call)
            except ChildProcessError as error:
                progress.unmeasured(str(error))
                return
            for measurement in measured:
                store.write_measurement(measurement)
            for arm in lacking:
                progress.unmeasured(f"{arm.variant}: {arm.reason}")


def _answers(
    missing: Sequence[Experiment], workers: Workers, jobs: int, progress: Progress
) -> Iterator[tuple[Experiment, Record | Died]]:
    """How each run ended. Where a task's data cannot be had, its runs fail before they begin."""
    lacking: dict[str, Died] = {}
    for name in dict.fromkeys(run.task for run in missing):
        # Fetched and prepared once, before many processes ask for it.
        progress.preparing(name)
        reason = workers.call(unavailable, name)
        if reason is not None:
            lacking[name] = Died("failed", str(reason))
            progress.lacking(name, str(reason))
    yield from ((run, lacking[run.task]) for run in missing if run.task in lacking)
    ready = [run for run in missing if run.task not in lacking]
    yield from workers.run_all(ready, jobs, progress.stepped)


def unavailable(task: str) -> str | None:
    """Why the data of a task cannot be had; None where they are here, fetched if need be."""
    try:
        tasks.find(task).load()
    except (DataRefusedError, DataUnavailableError) as error:
        return str(error)
    return None


def info(study: Study, command: str) -> StudyInfo:
    """What the store is made for."""
    experiments = study.experiments()
    models = models_to_measure(study)
    return StudyInfo(
        name=study.name,
        command=command,
        variants=list(dict.fromkeys(arm_text(run.variant, run.model.name) for run in experiments)),
        tasks=list(study.seeds),
        cost_task=study.cost_task,
        seeds=dict(study.seeds),
        threads=study.threads,
        precision=study.precision,
        backend=study.backend,
        runs=[run.id for run in experiments],
        measurements=[identity(model, conditions_of(study, models)) for model in models],
    )


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
def _interrupts_noted(workers: Workers, store: Store, known: Mapping[str, Task]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        how = Died("interrupted", "The study was interrupted.")
        for experiment in workers.running():
            store.write_run(lost(experiment, known[experiment.task], how))
        raise
