"""A study carried out: what is missing is run and measured, and each result is kept at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
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
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import no_start, now, record, run, run_and_keep
from qkvbench.train.trained import Trained


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
    known = {name: tasks.find(name) for name in study.names}
    models = models_to_measure(study)
    store.write_study(info(study, command))
    missing = to_run(experiments, store)
    checkpoints = Checkpoints(store.checkpoints)
    for done in set(experiments).difference(missing):
        # Who wrote its record may have been killed before it could remove them.
        checkpoints.remove(done)
    planned = dict.fromkeys([*experiments, *missing])
    progress.planned(len(missing), len(planned))
    with Workers(study.backend) as workers:
        busy = study.threads * study.devices
        jobs = jobs or (1 if workers.accelerated else max(1, cores() // busy))
        with _interrupts_noted(workers, store, known):
            for experiment, answer in _answers(missing, workers, jobs, checkpoints, progress):
                ended = (
                    lost(experiment, known[experiment.task], answer)
                    if isinstance(answer, Died)
                    else answer
                )
                store.write_run(ended)
                if ended.status == "done":
                    checkpoints.remove(experiment)
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


def to_run(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """What is missing, in the order in which it is run: what others need comes first, once.

    It is asked for by what is missing alone, and takes no time where its weights are kept.
    """
    missing = [each for each in experiments if store.done(each) is None]
    needed = [first for each in missing for first in each.needed]
    needed.sort(key=lambda first: len(first.needed))
    return list(dict.fromkeys([*needed, *missing]))


def _answers(
    missing: Sequence[Experiment],
    workers: Workers,
    jobs: int,
    checkpoints: Checkpoints,
    progress: Progress,
) -> Iterator[tuple[Experiment, Record | Died]]:
    """How each run ended. Where its data or its start cannot be had, it fails before it begins."""
    lacking: dict[str, Died] = {}
    for name in dict.fromkeys(each.task for each in missing):
        # Fetched and prepared once, before many processes ask for it.
        progress.preparing(name)
        reason = workers.call(unavailable, name)
        if reason is not None:
            lacking[name] = Died("failed", str(reason))
            progress.lacking(name, str(reason))
    ended: dict[Experiment, Record | Died] = {}
    for work, phase in _phases(missing):
        cannot = {
            each: why
            for each in phase
            if (why := lacking.get(each.task) or _without_start(each, ended)) is not None
        }
        ready = [each for each in phase if each not in cannot]
        for experiment, answer in chain(
            cannot.items(),
            workers.run_all(ready, jobs, progress.stepped, partial(work, checkpoints=checkpoints)),
        ):
            ended[experiment] = answer
            yield experiment, answer


def _phases(
    missing: Sequence[Experiment],
) -> Iterator[tuple[Callable[..., Record], list[Experiment]]]:
    """What can run at the same time, in order: runs whose weights are kept for others, the rest."""
    needed = {first for each in missing for first in each.needed}
    kept = [each for each in missing if each in needed]
    for _, alike in groupby(kept, key=lambda each: len(each.needed)):
        yield run_and_keep, list(alike)
    yield run, [each for each in missing if each not in needed]


def _without_start(
    experiment: Experiment, ended: Mapping[Experiment, Record | Died]
) -> Died | None:
    """How an experiment ends that needs one that did not come to its end; None: it can begin."""
    for first in experiment.first:
        how = ended.get(first)
        if how is not None and how.status != "done":
            return Died("failed", no_start(first, how.status, how.reason))
    return None


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
def _interrupts_noted(workers: Workers, store: Store, known: Mapping[str, Task]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        how = Died("interrupted", "The study was interrupted.")
        for experiment in workers.running():
            store.write_run(lost(experiment, known[experiment.task], how))
        raise
