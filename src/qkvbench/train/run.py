"""One experiment, run in this process or over several devices, to its record: also if it fails."""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import qkvbench.cost as computed
from qkvbench.backends import Backend, GatedLearner, Learner, find, multi_device_backend
from qkvbench.data import DataRefusedError
from qkvbench.experiment import Experiment, to_json
from qkvbench.measure.machine import machine
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.results.record import Cost, MetricInfo, Observed, Record, Status
from qkvbench.tasks import Data, Task
from qkvbench.tasks import find as find_task
from qkvbench.train.artifacts import require_weights
from qkvbench.train.checkpoint import (
    Checkpoints,
    Progress,
    checkpoint_periodically,
    progress_of,
    restore,
)
from qkvbench.train.extract_features import check_extractor, with_features
from qkvbench.train.loop import DivergedError, score, score_test_split, train
from qkvbench.train.multi_process import ProcessFailure, run_processes
from qkvbench.train.run_state import RunState

# Behind the name of a metric: before the first step.
BEFORE = "_before"

# Called with each step and its loss.
Report = Callable[[int, float], None]
# Called with the learner of a run that is done.
AtEnd = Callable[[Experiment, Record, Learner], None]


def no_report(_step: int, _loss: float) -> None:
    """No-op."""


def discard_weights(_experiment: Experiment, _record: Record, _learner: Learner) -> None:
    """No-op."""


def run(
    experiment: Experiment,
    report: Report = no_report,
    at_end: AtEnd = discard_weights,
    checkpoints: Checkpoints | None = None,
) -> Record:
    """Train, score and describe `experiment`. If it fails, its record says why.

    The final weights of its dependencies must be in the cache: `train.dependencies` trains them.
    With `checkpoints` the run resumes from its newest one, and saves one now and then, and when
    SIGTERM or Ctrl-C ends the process; the caller deletes them once it has stored the record. An
    experiment on several devices starts a process for each, unless this is one of them.
    """
    if experiment.devices > 1 and not shares_a_run(experiment):
        return _run_processes(experiment, report, at_end, checkpoints)
    return _run_here(experiment, report, at_end, checkpoints)


def shares_a_run(experiment: Experiment) -> bool:
    """Whether this is one of several processes that were launched for an experiment."""
    if experiment.devices == 1:
        return False
    _, world_size = multi_device_backend(experiment.backend).rank_and_world_size()
    return world_size > 1


def check_task(task: Task, experiment: Experiment) -> None:
    """Raise if the task has changed, or if the experiment's feature extractor does not fit it."""
    if task.version != experiment.task_version:
        raise DataRefusedError(
            f"{experiment.task} has changed since the study began: version {task.version}, not "
            f"{experiment.task_version}. The same command begins anew."
        )
    check_extractor(task, experiment)


def _run_here(
    experiment: Experiment, report: Report, at_end: AtEnd, checkpoints: Checkpoints | None
) -> Record:
    """The record of a run by this process, or by the processes that share it."""
    task, backend = find_task(experiment.task), find(experiment.backend)
    # Before any computation: a backend may fix its threads once and for all.
    backend.prepare(experiment.threads)
    state = RunState(started=now())
    try:
        check_task(task, experiment)
        data = _load(task, experiment)
        weights = experiment.init_from and require_weights(experiment.init_from)
        teacher = experiment.teacher and require_weights(experiment.teacher)
        # The feature extractor may have used other threads.
        backend.prepare(experiment.threads)
        memory_before = reset_peak_memory(backend)
        state.began_s = time.perf_counter()
        learner = backend.Learner(experiment)
        if weights is not None:
            learner.load_matching(weights)
        if teacher is not None:
            assert isinstance(learner, GatedLearner), "an experiment with a teacher is torch's"
            learner.load_teacher(teacher)
        before = _first_scores(experiment, task, data, learner)
        _train(experiment, task, data, learner, report, state, checkpoints)
        score_test_split(task, data, learner, experiment, state)
        state.metrics |= before
        observed = _observed(backend, state, memory_before)
    except Exception as error:
        # Every error becomes a record, so that a study goes on.
        return error_record(experiment, task, state, error)
    done = record(experiment, task, str(backend.device()), state, "done", None)
    done = done.model_copy(update={"observed": observed, "data_identity": data.identity})
    at_end(experiment, done, learner)
    return done


def _load(task: Task, experiment: Experiment) -> Data:
    """The task's data, as features if the experiment has a feature extractor."""
    data = task.load()
    extractor = experiment.feature_extractor
    return data if extractor is None else with_features(data, extractor)


def _first_scores(
    experiment: Experiment, task: Task, data: Data, learner: Learner
) -> dict[str, float]:
    """The scores before training of a model that begins with weights of other attention."""
    if not experiment.other_attention:
        return {}
    found = score(task, learner, data.test, experiment.training.scored)
    return {f"{name}{BEFORE}": value for name, value in found.items()}


def _train(
    experiment: Experiment,
    task: Task,
    data: Data,
    learner: Learner,
    report: Report,
    state: RunState,
    checkpoints: Checkpoints | None,
) -> None:
    """Train from the newest checkpoint, if there is one, and save others on the way."""
    if checkpoints is None:
        train(experiment, task, data, learner, report, state)
        return
    device = str(find(experiment.backend).device())
    restore(checkpoints, experiment, learner, state, machine(device))

    def progress() -> Progress:
        return progress_of(experiment, state, machine(device))

    with checkpoint_periodically(checkpoints, experiment, learner, progress) as on_step_end:
        train(experiment, task, data, learner, report, state, on_step_end)


def _observed(backend: Backend, state: RunState, memory_before: int) -> Observed:
    return Observed(
        train_s=state.train_s(),
        step_p50_s=statistics.median(state.step_s),
        peak_memory_bytes=max(0, peak_bytes(backend) - memory_before),
        compile_s=state.compile_s,
        resumed=state.resumed,
        other_devices=state.other_devices,
    )


def _run_processes(
    experiment: Experiment, report: Report, at_end: AtEnd, checkpoints: Checkpoints | None
) -> Record:
    """The record of a run by a process for each device."""
    task, state = find_task(experiment.task), RunState(started=now())
    try:
        for dependency in experiment.first:
            require_weights(dependency)
        final = None if at_end is discard_weights else at_end
        result = run_processes(experiment, report, final, checkpoints)
    except Exception as error:
        # As in a run by this process.
        return error_record(experiment, task, state, error)
    if isinstance(result, ProcessFailure):
        device = str(find(experiment.backend).device())
        return record(experiment, task, device, state, result.status, result.reason)
    return result


def error_record(experiment: Experiment, task: Task, state: RunState, error: Exception) -> Record:
    """The record of a run that ended with an error."""
    status: Status
    if isinstance(error, DivergedError):
        status, reason = "diverged", str(error)
    else:
        status = "oom" if _is_out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}"
    device = str(find(experiment.backend).device())
    return record(experiment, task, device, state, status, reason)


def record(
    experiment: Experiment,
    task: Task,
    device: str,
    state: RunState,
    status: Status,
    reason: str | None,
) -> Record:
    """The record of a run that ended with `status`."""
    metric = task.metric
    return Record(
        id=experiment.id,
        status=status,
        reason=reason,
        experiment=to_json(experiment),
        variant=experiment.variant,
        model=experiment.model.label,
        task=str(experiment.task),
        task_version=experiment.task_version,
        seed=experiment.seed,
        backend=experiment.backend,
        precision=experiment.precision,
        threads=experiment.threads,
        metric=MetricInfo(
            name=metric.name,
            unit=metric.unit,
            better=metric.better,
            chance=metric.chance,
            solved=metric.solved,
        ),
        metrics=state.metrics,
        solved_step=state.solved_step,
        items=state.items,
        written=state.written,
        curve=state.curve,
        snapshots=state.snapshots,
        cost=cost(experiment, task),
        machine=machine(device),
        started=state.started,
    )


def cost(experiment: Experiment, task: Task) -> Cost:
    """The computed cost of the experiment's model at the length of the task's sequences."""
    model, tokens, second = experiment.model, task.tokens, task.second_tokens
    parameters = computed.parameters(model)
    return Cost(
        parameters={
            "total": parameters.total,
            "attention": parameters.attention,
            "feed_forward": parameters.feed_forward,
            "embedding": parameters.embedding,
            "norm": parameters.norm,
            "head": parameters.head,
        },
        tokens=tokens,
        macs=computed.macs(model, tokens, second),
        flops=computed.flops(model, tokens, second),
        cache_bytes_per_token=computed.cache_bytes_per_token(model),
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has a class for it on a GPU, but only a message on a CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
