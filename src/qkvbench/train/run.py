"""One experiment, run in this process, to its record. Every way to end is a record."""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import qkvbench.cost as computed
from qkvbench.backends import find
from qkvbench.data import DataRefusedError
from qkvbench.experiment import Experiment, to_json
from qkvbench.measure.machine import machine
from qkvbench.measure.memory import level_bytes, peak_bytes
from qkvbench.results.record import Cost, MetricInfo, Observed, Record, Status
from qkvbench.tasks import Task
from qkvbench.tasks import find as find_task
from qkvbench.train.loop import DivergedError, Trained, train


def run(
    experiment: Experiment, report: Callable[[int, float], None] = lambda _step, _loss: None
) -> Record:
    """Train, score and describe `experiment`. A run that fails is a record with a reason, too."""
    task = find_task(experiment.task)
    backend = find(experiment.backend)
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
        data = task.load()
        before = level_bytes(backend)
        began = time.perf_counter()
        learner = backend.Learner(experiment)
        train(experiment, task, data, learner, report, trained)
        observed = Observed(
            train_s=time.perf_counter() - began - (trained.compile_s or 0.0),
            step_p50_s=statistics.median(trained.step_s),
            peak_memory_bytes=max(0, peak_bytes(backend) - before),
            compile_s=trained.compile_s,
        )
    except DivergedError as error:
        return record(experiment, task, device, started, "diverged", str(error), trained)
    except Exception as error:
        # Whatever went wrong, the study goes on with a row that says so.
        status: Status = "oom" if _out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}"
        return record(experiment, task, device, started, status, reason, trained)
    done = record(experiment, task, device, started, "done", None, trained)
    return done.model_copy(update={"observed": observed, "data_identity": data.identity})


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
        model=experiment.model.name,
        task=experiment.task,
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
        curve=trained.curve,
        snapshots=trained.snapshots,
        cost=cost(experiment, task),
        machine=machine(device),
        started=started,
    )


def cost(experiment: Experiment, task: Task) -> Cost:
    """What the experiment's model costs at the length of the task's sequences, computed."""
    model, tokens = experiment.model, task.tokens
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
        macs=computed.macs(model, tokens),
        flops=computed.flops(model, tokens),
        cache_bytes_per_token=computed.cache_bytes_per_token(model),
    )


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch says so by class on a GPU and only in words on a CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
