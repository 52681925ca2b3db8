"""Experiments that depend on the final weights of others: the order in which they run.

`run` never runs another experiment. Its callers train the dependencies first, in this order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from qkvbench.backends import find as find_backend
from qkvbench.data.cache import DataRefusedError, alone
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.tasks import find
from qkvbench.train.artifacts import (
    MissingWeightsError,
    folder_name,
    kept_record,
    kept_weights,
    require_weights,
    run_text,
    save_final_weights,
)
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.loop import score_test_split
from qkvbench.train.run import (
    AtEnd,
    Report,
    check_task,
    discard_weights,
    error_record,
    no_report,
    now,
    run,
    shares_a_run,
)
from qkvbench.train.run import record as record_of
from qkvbench.train.run_state import RunState


class Phase(NamedTuple):
    """Experiments that can run at the same time, and whether their final weights are kept."""

    experiments: list[Experiment]
    saves_weights: bool


def in_order(experiments: Iterable[Experiment]) -> list[Experiment]:
    """The experiments and all that they depend on, each once, dependencies first."""
    requested = list(experiments)
    needed = [each for experiment in requested for each in experiment.needed]
    return list(dict.fromkeys([*sorted(needed, key=_depth), *requested]))


def phases(ordered: Sequence[Experiment]) -> Iterator[Phase]:
    """The phases of experiments that are `in_order`; the last has those that none depends on."""
    needed = {each for experiment in ordered for each in experiment.needed}
    for _, same_depth in groupby((each for each in ordered if each in needed), key=_depth):
        yield Phase(list(same_depth), saves_weights=True)
    yield Phase([each for each in ordered if each not in needed], saves_weights=False)


def failed_dependency(experiment: Experiment, ended: Mapping[Experiment, Record]) -> str | None:
    """Why a dependency's failure prevents this experiment; None if none failed."""
    for each in experiment.first:
        record = ended.get(each)
        if record is not None and record.status != "done":
            return _failure_text(each, record)
    return None


def run_with_dependencies(
    experiment: Experiment,
    report: Report = no_report,
    at_end: AtEnd = discard_weights,
    checkpoints: Checkpoints | None = None,
) -> Record:
    """As `run`, after training the dependencies whose final weights are missing.

    If a dependency fails, the record is a failed one with that reason. Processes that share one run
    train nothing first: `run` fails there if weights are missing.
    """
    error = _train_dependencies(experiment, report, checkpoints)
    return error or run(experiment, report, at_end, checkpoints)


def run_and_save(
    experiment: Experiment, report: Report = no_report, checkpoints: Checkpoints | None = None
) -> Record:
    """As `run_with_dependencies`, and keeps the final weights. Runs nothing if they are kept.

    If several processes call this at once, one of them runs the experiment.
    """
    error = None
    if kept_weights(experiment) is None:
        error = _train_dependencies(experiment, report, checkpoints)
    return error or _run_once(experiment, report, checkpoints)


def ensure_trained(
    experiment: Experiment, report: Report = no_report, checkpoints: Checkpoints | None = None
) -> Path:
    """The file of the final weights of `experiment`, which is trained first if it is missing.

    MissingWeightsError if the run fails, DataUnavailableError if the cache cannot be written.
    """
    record = run_and_save(experiment, report, checkpoints)
    if record.status != "done":
        raise MissingWeightsError(_failure_text(experiment, record))
    return require_weights(experiment)


def adopt_weights(experiment: Experiment, path: Path) -> None:
    """Keep the weights in a file as the final ones of `experiment`, with the scores that they have.

    ValueError if they are not a model's of it, DataRefusedError if others of it are kept.
    """
    if (kept := kept_weights(experiment)) is not None:
        if kept.read_bytes() != path.read_bytes():
            raise DataRefusedError(
                f"other weights of {run_text(experiment)} are in the cache, in {kept.parent}."
            )
        return
    task, backend = find(experiment.task), find_backend(experiment.backend)
    backend.prepare(experiment.threads)
    check_task(task, experiment)
    learner, state, data = backend.Learner(experiment), RunState(started=now()), task.load()
    missing = set(learner.weights()) - set(learner.load_matching(path))
    if missing:
        raise ValueError(f"{', '.join(sorted(missing)[:3])} are not in it, or of another shape.")
    score_test_split(task, data, learner, experiment, state)
    done = record_of(experiment, task, str(backend.device()), state, "done", None)
    save_final_weights(experiment, done, learner)


def _train_dependencies(
    experiment: Experiment, report: Report, checkpoints: Checkpoints | None
) -> Record | None:
    """Train the missing dependencies in order; the failed record of `experiment` if one fails."""
    if not experiment.first or shares_a_run(experiment):
        return None
    task, state = find(experiment.task), RunState(started=now())
    # Before any computation: a backend may fix its threads once and for all.
    find_backend(experiment.backend).prepare(experiment.threads)
    try:
        check_task(task, experiment)
        for each in _missing_dependencies(experiment):
            record = _run_once(each, report, checkpoints)
            if record.status != "done":
                raise MissingWeightsError(_failure_text(each, record))
    except Exception as error:
        # As in `run`: every error becomes a record, so that a study goes on.
        return error_record(experiment, task, state, error)
    return None


def _missing_dependencies(experiment: Experiment) -> list[Experiment]:
    """The dependencies that must be trained, in order. What kept weights depended on is not."""
    missing: dict[Experiment, None] = {}
    waiting = list(experiment.first)
    while waiting:
        each = waiting.pop()
        if each not in missing and kept_weights(each) is None:
            missing[each] = None
            waiting.extend(each.first)
    return sorted(missing, key=_depth)


def _run_once(experiment: Experiment, report: Report, checkpoints: Checkpoints | None) -> Record:
    """The record of an experiment whose dependencies are trained; keeps its final weights.

    Of several processes one runs it, and the others wait. Other uses of the cache do not.
    """
    with alone(folder_name(experiment)):
        record = kept_record(experiment) or run(experiment, report, save_final_weights, checkpoints)
    if checkpoints is not None and record.status == "done":
        checkpoints.remove(experiment)
    return record


def _failure_text(dependency: Experiment, record: Record) -> str:
    return (
        f"It needs the weights of {run_text(dependency)}, "
        f"whose run ended as {record.status}: {record.reason}"
    )


def _depth(experiment: Experiment) -> int:
    """A key that sorts dependencies first: each has fewer dependencies than what needs it."""
    return len(experiment.needed)
