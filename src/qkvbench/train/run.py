"""One experiment, run in this process or over many devices, to its record: every end is one."""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import qkvbench.cost as computed
from qkvbench.backends import Group, Learner, find, multi_device_backend
from qkvbench.data import DataRefusedError
from qkvbench.data.cache import alone
from qkvbench.experiment import Experiment, to_json
from qkvbench.measure.machine import machine
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.results.record import Cost, MetricInfo, Observed, Record, Status
from qkvbench.tasks import Task
from qkvbench.tasks import find as find_task
from qkvbench.train.artifacts import (
    NoStartError,
    folder_name,
    keep_end,
    kept_record,
    kept_weights,
)
from qkvbench.train.checkpoint import Checkpoints, Progress, kept_on_the_way, taken_up
from qkvbench.train.devices import Lost, over_devices
from qkvbench.train.extract_features import checked, seen
from qkvbench.train.loop import DivergedError, tested, train
from qkvbench.train.trained import Trained

Report = Callable[[int, float], None]


def _silent(_step: int, _loss: float) -> None:
    """Tell nobody."""


def left(_experiment: Experiment, _record: Record, _learner: Learner) -> None:
    """Keep nothing."""


def ended(
    experiment: Experiment, report: Report = _silent, checkpoints: Checkpoints | None = None
) -> Path:
    """The kept weights of this experiment, trained first where they are missing.

    Raises NoStartError where the run does not come to its end, DataUnavailableError where the
    cache cannot be written.
    """
    path = kept_weights(experiment)
    if path is None:
        if experiment.devices > 1 and multi_device_backend(experiment.backend).started()[1] > 1:
            raise NoStartError(
                f"It needs the weights of {experiment.task}, {experiment.id}, which are not kept "
                "here; processes that learn together cannot run another experiment first."
            )
        record = run_and_keep(experiment, report, checkpoints)
        path = kept_weights(experiment)
        if path is None:
            raise NoStartError(no_start(experiment, record.status, record.reason))
    return path


def run_and_keep(
    experiment: Experiment, report: Report = _silent, checkpoints: Checkpoints | None = None
) -> Record:
    """As `run`, and the weights that it ends with are kept; where they are, nothing is run.

    Several that ask at once get one run. No other use of the cache waits for it.
    """
    with alone(folder_name(experiment)):
        record = kept_record(experiment) or run(experiment, report, keep_end, checkpoints)
    if checkpoints is not None and record.status == "done":
        checkpoints.remove(experiment)
    return record


def no_start(start: Experiment, status: Status, reason: str | None) -> str:
    """Why what begins with the weights of `start` cannot, in words."""
    return (
        f"It needs the weights of {start.task}, {start.arm}, seed {start.seed}, "
        f"whose run ended as {status}: {reason}"
    )


def run(
    experiment: Experiment,
    report: Report = _silent,
    at_end: Callable[[Experiment, Record, Learner], None] = left,
    checkpoints: Checkpoints | None = None,
    group: Group | None = None,
) -> Record:
    """Train, score and describe `experiment`. A run that fails is a record with a reason, too.

    What it begins with or sees through is run first where its weights are not kept. `at_end`
    has the learner of a run that is done. With `checkpoints` it goes on from the newest one there,
    and keeps one now and then and when SIGTERM or Ctrl-C ends the process; to remove them is for
    whoever has written the record. An experiment on several devices is run by as many processes,
    which are started here where this is none of them. In a `group` it is trained in one
    program with others.
    """
    if experiment.devices > 1 and multi_device_backend(experiment.backend).started()[1] == 1:
        return _over_devices(experiment, report, at_end, checkpoints)
    return _here(experiment, report, at_end, checkpoints, group)


def _here(
    experiment: Experiment,
    report: Report,
    at_end: Callable[[Experiment, Record, Learner], None],
    checkpoints: Checkpoints | None,
    group: Group | None,
) -> Record:
    """The record of a run by this process, or by those of which it is one."""
    task = find_task(experiment.task)
    backend = find(experiment.backend)
    # Before anything computes: a backend may have its threads once and for all.
    backend.prepare(experiment.threads)
    device = str(backend.device())
    trained = Trained()
    started = now()
    try:
        if task.version != experiment.task_version:
            raise DataRefusedError(
                f"{experiment.task} is not what it was when the study began: version "
                f"{task.version}, not {experiment.task_version}. The same command begins anew."
            )
        checked(task, experiment)
        data = task.load()
        if through := experiment.feature_extractor:
            data = seen(data, through, partial(ended, through, report, checkpoints))
        start = experiment.init_from and ended(experiment.init_from, report, checkpoints)
        # What comes first may just have been trained here, with other threads.
        backend.prepare(experiment.threads)
        before = reset_peak_memory(backend)
        began = time.perf_counter()
        learner = (group.learner if group else backend.Learner)(experiment)
        if start is not None:
            learner.load_matching(start)

        def train_s() -> float:
            return time.perf_counter() - began - (trained.compile_s or 0.0)

        def told() -> Progress:
            return Progress(
                experiment=to_json(experiment),
                step=trained.step,
                curve=trained.curve,
                snapshots=trained.snapshots,
                solved_step=trained.solved_step,
                step_s=trained.step_s,
                started=started,
                train_s=train_s(),
                compile_s=trained.compile_s,
                resumed=trained.resumed,
                other_devices=trained.other_devices,
                machine=machine(device),
            )

        if checkpoints is None:
            train(experiment, task, data, learner, report, trained)
        else:
            earlier = taken_up(checkpoints, experiment, learner, trained, machine(device))
            if earlier is not None:
                started = earlier.started
                # The clock began as much earlier as the processes before this one took.
                began -= earlier.train_s + (earlier.compile_s or 0.0)
            with kept_on_the_way(checkpoints, experiment, learner, told) as reached:
                train(experiment, task, data, learner, report, trained, reached)
        tested(task, data, learner, experiment.training, trained)
        observed = Observed(
            train_s=train_s(),
            step_p50_s=statistics.median(trained.step_s),
            peak_memory_bytes=max(0, peak_bytes(backend) - before),
            compile_s=trained.compile_s,
            resumed=trained.resumed,
            together=len(group.experiments) if group else None,
            other_devices=trained.other_devices,
        )
    except DivergedError as error:
        return record(experiment, task, device, started, "diverged", str(error), trained)
    except Exception as error:
        # Whatever went wrong, the study goes on with a row that says so.
        status: Status = "oom" if _out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}"
        return record(experiment, task, device, started, status, reason, trained)
    done = record(experiment, task, device, started, "done", None, trained)
    done = done.model_copy(update={"observed": observed, "data_identity": data.identity})
    at_end(experiment, done, learner)
    return done


def _over_devices(
    experiment: Experiment,
    report: Report,
    at_end: Callable[[Experiment, Record, Learner], None],
    checkpoints: Checkpoints | None,
) -> Record:
    """The record of a run by several processes; what it begins with is run before, and once."""
    started = now()
    try:
        for first in experiment.first:
            ended(first, report, checkpoints)
        wanted = None if at_end is left else at_end
        found = over_devices(experiment, report, wanted, checkpoints)
    except Exception as error:
        # As in a run by this process.
        found = Lost("failed", f"{type(error).__name__}: {error}")
    if isinstance(found, Record):
        return found
    task, device = find_task(experiment.task), str(find(experiment.backend).device())
    return record(experiment, task, device, started, found.status, found.reason, Trained())


def record(
    experiment: Experiment,
    task: Task,
    device: str,
    started: str,
    status: Status,
    reason: str | None,
    trained: Trained,
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
        metrics=trained.metrics,
        solved_step=trained.solved_step,
        items=trained.items,
        written=trained.written,
        curve=trained.curve,
        snapshots=trained.snapshots,
        cost=cost(experiment, task),
        machine=machine(device),
        started=started,
    )


def cost(experiment: Experiment, task: Task) -> Cost:
    """What the experiment's model costs at the length of the task's sequences, computed."""
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
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch says so by class on a GPU and only in words on a CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
