"""A study of 15 arms on 10 tasks with made-up scores: as many runs as a test of size needs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from fake_study import experiments, measurement, record
from qkvbench.experiment import to_json
from qkvbench.recipes import fifteen_by_eight
from qkvbench.results.items import ItemScores
from qkvbench.results.record import Snapshot, StudyInfo
from qkvbench.results.store import Store
from qkvbench.tasks import find

STUDY = fifteen_by_eight.study()
ARMS, TASKS = STUDY.variants[:15], tuple(STUDY.seeds)
NOISE = 0.004
ITEMS = 256
MEASURES = ("kv_cosine", "kv_cka", "kv_residual", "q_rank", "k_rank", "v_rank", "entropy")


def write_large_study(folder: Path, seeds: int, *, items: bool = False) -> int:
    """Write the study into the folder; the number of its runs.

    With `items` each record has item scores and snapshots, as those of real runs have.
    """
    store = Store(folder)
    study = StudyInfo(
        name="large",
        command="qkvbench run large",
        variants=list(ARMS),
        tasks=list(TASKS),
        cost_task="lm-reviews",
        seeds=dict.fromkeys(TASKS, seeds),
        threads=1,
        precision="fp32",
        backend="torch",
    )
    store.write_study(study)
    (folder / "runs").mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    for task in TASKS:
        shared = rng.normal(size=seeds) * NOISE
        for number, first in enumerate(experiments(task, ARMS, seeds=1)):
            _write_arm(folder, first, number, shared + rng.normal(size=seeds) * NOISE, rng, items)
    for number, first in enumerate(experiments("lm-reviews", ARMS, seeds=1)):
        store.write_measurement(measurement(first, number))
    return len(TASKS) * len(ARMS) * seeds


def _write_arm(folder, first, number, noise, rng, items):
    metric = find(first.task).metric
    made = json.loads(record(first).model_dump_json())
    for seed, own in enumerate(noise):
        experiment = replace(first, seed=seed)
        score = metric.chance + 0.9 * (1.0 - metric.chance) - 0.002 * number
        if metric.better == "lower":
            score = 2.4 + 0.004 * number
        if metric.solved is not None:
            score = 0.25 if (seed + number) % 4 == 0 else metric.solved + 0.001
        score = float(min(score + own, 1.0 if metric.unit == "share" else 9.0))
        made |= {
            "id": experiment.id,
            "experiment": to_json(experiment),
            "seed": seed,
            "metrics": {metric.name: score},
            "curve": [point | {"metrics": {metric.name: score}} for point in made["curve"]],
            "started": f"2025-01-01T{seed // 60 % 24:02d}:{seed % 60:02d}:00+00:00",
        }
        if items and metric.solved is None:
            scores = ItemScores.from_scores(rng.normal(score, 0.1, size=ITEMS), np.ones(ITEMS))
            made["items"] = scores.model_dump(mode="json")
        if items:
            made["snapshots"] = [_snapshot(first, step, rng) for step in range(0, 50, 10)]
        # Not flushed to disk one by one: only reading is of interest.
        (folder / "runs" / f"{experiment.id}.json").write_text(json.dumps(made, indent=1))


def _snapshot(first, step, rng):
    layers = [f"blocks.{layer}.attention" for layer in range(2)]
    measures = {name: [round(value, 6) for value in rng.random(2)] for name in MEASURES}
    return Snapshot(step=step, layers=layers, measures=measures).model_dump(mode="json")
