"""A study as `quick` would leave it, with made-up scores, to test the store and the reports."""

import math
from pathlib import Path

import numpy as np

import qkvbench.cost as computed
from qkvbench.experiment import Experiment, to_json
from qkvbench.results.record import (
    Cost,
    Machine,
    Measurement,
    MetricInfo,
    Observed,
    Point,
    Record,
    StudyInfo,
)
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.task_ref import parse_task
from qkvbench.tasks import find

ARMS = (
    "q,k,v",
    "q=k,v",
    "q,k=v",
    "q=k=v",
    "q,k=R(q),v=R(q)",
    "q=k=x,v",
    "q=k=v=x",
    "q,k,v/1",
)
SEEDS = {"digits": 3, "sort": 3, "recall": 5, "lm-reviews": 3}
# What each arm loses against the baseline, made up; recall gives the seeds that solve it.
LOSS = {
    "digits": (0.0, 0.002, 0.001, 0.004, 0.003, 0.006, 0.031, 0.002),
    "sort": (0.0, 0.121, 0.0005, 0.158, 0.002, 0.074, 0.402, 0.001),
    "recall": (5, 5, 3, 0, 4, 5, 0, 5),
    "lm-reviews": (0.0, 0.011, 0.019, 0.048, 0.021, 0.034, 0.191, 0.004),
}
BEST = {"digits": 0.967, "sort": 0.985, "recall": 0.998, "lm-reviews": 2.412}
NOISE = {"digits": 0.0035, "sort": 0.004, "recall": 0.001, "lm-reviews": 0.0045}

MACHINE = Machine(
    device="made for tests",
    cores=2,
    load=0.1,
    platform="Linux-made-for-tests",
    versions={"python": "3.11.0", "torch": "made for tests"},
    code="0000made",
)


def experiments(task_name, arms=ARMS, seeds=None):
    """The matched experiments of one task."""
    task = find(task_name)
    base = Experiment(task.model, parse_task(task_name), task.version, task.training, seed=0)
    return base.vary(variants=arms, seeds=range(seeds or SEEDS[task_name]))


def record(experiment, score=0.9, status="done", reason=None, solved_step=None):
    """A record of this experiment with a made-up score and learning curve."""
    task = find(experiment.task)
    metric = task.metric
    parts = computed.parameters(experiment.model)
    steps = experiment.training.steps
    curve = [
        Point(
            step=step,
            train_loss=2 * math.exp(-4 * step / steps),
            gradient_norm=0.5,
            metrics={metric.name: score + (metric.chance - score) * math.exp(-5 * step / steps)},
        )
        for step in range(max(1, steps // 5), steps + 1, max(1, steps // 5))
    ]
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
        data_identity="made for tests",
        metrics={metric.name: score} if status == "done" else {},
        solved_step=solved_step,
        curve=curve if status == "done" else curve[:4],
        cost=Cost(
            parameters={
                "total": parts.total,
                "attention": parts.attention,
                "feed_forward": parts.feed_forward,
                "embedding": parts.embedding,
                "norm": parts.norm,
                "head": parts.head,
            },
            tokens=task.tokens,
            macs=computed.macs(experiment.model, task.tokens),
            flops=computed.flops(experiment.model, task.tokens),
            cache_bytes_per_token=computed.cache_bytes_per_token(experiment.model),
        ),
        observed=Observed(train_s=6.2, step_p50_s=0.021, peak_memory_bytes=90 * 10**6)
        if status == "done"
        else None,
        machine=MACHINE,
        started=f"2025-01-01T00:00:{experiment.seed:02d}+00:00",
    )


def measurement(experiment, number):
    """A made-up measurement of decoding with this experiment's model."""
    cache = computed.cache_bytes_per_token(experiment.model) * 512 * 8
    return Measurement(
        id=experiment.id,
        variant=experiment.variant,
        model=experiment.model.label,
        model_spec=to_json(experiment)["model"],
        backend="torch",
        precision="fp32",
        threads=1,
        context=512,
        batch=8,
        samples=200,
        decode_p50_s=0.00081 + 0.00003 * number,
        memory_bytes=cache * 2 + 3_400_000,
        cache_bytes=cache * 2,
        kernel="reference",
        machine=MACHINE,
    )


def scored(task_name, arms=ARMS, seed=7):
    """Records of one task whose scores follow LOSS, with noise that the arms share by seed."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=SEEDS[task_name]) * NOISE[task_name]
    records = []
    for experiment in experiments(task_name, arms):
        arm = ARMS.index(experiment.variant)
        noise = shared[experiment.seed] + rng.normal() * NOISE[task_name]
        loss = LOSS[task_name][arm]
        if task_name == "recall":
            solved = experiment.seed < loss
            score = BEST["recall"] - abs(noise) if solved else 0.24 + noise
            step = 300 + 50 * ((arm + 2 * experiment.seed) % 5)
            records.append(record(experiment, score, solved_step=step if solved else None))
        else:
            sign = 1 if find(task_name).metric.better == "lower" else -1
            score = BEST[task_name] + sign * loss + noise
            records.append(record(experiment, min(score, 1.0) if sign < 0 else score))
    return records


def info(arms=ARMS, tasks=tuple(SEEDS)):
    """What the store says it was made for."""
    return StudyInfo(
        name="quick",
        command="qkvbench run quick",
        variants=list(arms),
        tasks=list(tasks),
        cost_task="lm-reviews" if "lm-reviews" in tasks else None,
        seeds={task: SEEDS[task] for task in tasks},
        threads=1,
        precision="fp32",
        backend="torch",
    )


def build(path: Path, arms=ARMS, tasks=tuple(SEEDS)) -> Store:
    """A whole store: one run on lm-reviews diverged and one file is damaged."""
    store = Store(path)
    store.write_study(info(arms, tasks))
    for task in tasks:
        for made in scored(task, arms):
            diverged = (made.task, made.variant, made.seed) == ("lm-reviews", "q=k=x,v", 1)
            store.write_run(
                made.model_copy(
                    update={
                        "status": "diverged",
                        "reason": "the loss was not a number at step 214 (made for tests)",
                        "metrics": {},
                        "observed": None,
                    }
                )
                if diverged
                else made
            )
    measured = experiments("lm-reviews", arms, seeds=1) if "lm-reviews" in tasks else ()
    for number, experiment in enumerate(measured):
        store.write_measurement(measurement(experiment, number))
    (path / "runs" / f"{0:016x}.json").write_text('{"schema_version": 1, "id"')
    return store


def revised(made: Record, code: str) -> Record:
    """The same record from another revision of the code."""
    return made.model_copy(update={"machine": MACHINE.model_copy(update={"code": code})})


def small(path, records, arms=ARMS[:3], tasks=("digits",), **changes):
    """The view of a store with these records."""
    store = Store(path)
    store.write_study(info(arms, tasks).model_copy(update=changes))
    for record in records:
        store.write_run(record)
    return view(store)
