"""The remaining runs of a study and their time, estimated from records of the same kind."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkvbench import tasks
from qkvbench.cost import macs, step_memory
from qkvbench.cost.roofline import TRAINING_PASSES
from qkvbench.data.hub import HubData
from qkvbench.experiment import Experiment
from qkvbench.model import parse_label
from qkvbench.results.store import Store, read_regular
from qkvbench.task_ref import TaskRef, parse_task

# Records of studies in a clone; an installed package has none.
STUDIES = Path(__file__).parents[3] / "studies"
# Shorter runs are no basis for an estimate.
LEAST_STEPS = 50


@dataclass(frozen=True)
class Known:
    """Estimates from records of one kind: seconds a step, with its share of scoring; record size.

    ``source`` describes the records.
    """

    step_s: float
    record_bytes: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """The estimate for one task of a study. ``run_s`` and ``disk_bytes`` are None without records.

    ``step_bytes`` bounds the memory of a step. ``flops`` are the operations of the matrix products
    that the remaining runs train with, and ``data`` is what the task reads of the Hugging Face Hub.
    """

    task: str
    runs: int
    left: int
    run_s: float | None
    source: str | None
    step_bytes: int
    disk_bytes: float | None
    flops: float
    data: HubData | None

    @property
    def left_s(self) -> float | None:
        """Seconds of the remaining runs, one after the other."""
        return None if self.run_s is None else self.left * self.run_s


@dataclass(frozen=True)
class _Kind:
    """The conditions that decide the time of a step, but for the arm."""

    task: str
    model: str
    backend: str
    precision: str
    threads: int
    devices: int
    compiled: bool


def forecasts(
    experiments: Sequence[Experiment], missing: Iterable[Experiment], store: Store
) -> list[Forecast]:
    """The estimate for each task of the runs and their dependencies, in their order."""
    left = list(missing)
    planned = dict.fromkeys([*experiments, *left])
    by_task: dict[TaskRef, list[Experiment]] = {}
    for each in planned:
        by_task.setdefault(each.task, []).append(each)
    left_by_task = Counter(each.task for each in left)
    found = _estimates({_kind(runs[0]) for runs in by_task.values()}, store)
    return [
        _forecast(name, runs, left_by_task[name], found.get(_kind(runs[0])))
        for name, runs in by_task.items()
    ]


def _kind(run: Experiment) -> _Kind:
    return _Kind(
        task=str(run.task.inputs),
        model=run.model.name,
        backend=run.backend,
        precision=run.precision,
        threads=run.threads,
        devices=run.devices,
        compiled=run.compiled,
    )


def _kind_of_record(value: Mapping[str, Any]) -> _Kind:
    """The kind of a record's run; ValueError, TypeError or KeyError if it is no record."""
    experiment: Mapping[str, Any] = value["experiment"]
    return _Kind(
        task=str(parse_task(value["task"]).inputs),
        model=parse_label(value["model"])[0],
        backend=value["backend"],
        precision=value["precision"],
        threads=value["threads"],
        devices=experiment.get("devices", 1),
        compiled=experiment.get("compiled", False),
    )


def _forecast(
    name: TaskRef, runs: Sequence[Experiment], left: int, known: Known | None
) -> Forecast:
    steps = statistics.fmean(each.training.steps for each in runs)
    task = tasks.find(name)
    # Seeds of an arm share its model.
    models = {id(each.model): each for each in runs}.values()
    flops = statistics.fmean(_training_flops(each, task) for each in models)
    return Forecast(
        task=str(name),
        runs=len(runs),
        left=left,
        run_s=known and known.step_s * steps,
        source=known and known.source,
        step_bytes=max(step_memory(each, task.tokens, task.second_tokens).total for each in models),
        disk_bytes=known and known.record_bytes * left,
        flops=left * flops,
        data=task.hub,
    )


def _training_flops(run: Experiment, task: tasks.Task) -> float:
    """The operations of the products of all steps of a run."""
    items = run.training.steps * run.training.batch
    one = macs(run.model, task.tokens, task.second_tokens)
    return 2.0 * TRAINING_PASSES * one * items


def _estimates(wanted: set[_Kind], store: Store) -> Mapping[_Kind, Known]:
    """Estimates for each kind from its own store, or else from the studies of this clone."""
    found = _from_records(wanted, [store.path], "this store")
    if missing := wanted - found.keys():
        found |= _from_records(missing, sorted(STUDIES.glob("*")), "the like in studies/")
    return found


def _from_records(wanted: set[_Kind], folders: Sequence[Path], source: str) -> dict[_Kind, Known]:
    steps: dict[_Kind, list[float]] = {}
    sizes: dict[_Kind, list[int]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("runs/[!.]*.json"))):
        try:
            content = read_regular(path)
            value: dict[str, Any] = json.loads(content)
            kind = _kind_of_record(value)
            if kind in wanted and value["status"] == "done":
                count: int = value["experiment"]["training"]["steps"]
                if count >= LEAST_STEPS:
                    steps.setdefault(kind, []).append(value["observed"]["train_s"] / count)
                sizes.setdefault(kind, []).append(len(content))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # Not a record; the report warns of it.
            continue
    return {
        kind: Known(statistics.median(each), statistics.fmean(sizes[kind]), source)
        for kind, each in steps.items()
    }
