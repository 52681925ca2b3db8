"""The remaining runs of a study and their time, estimated from records of the same tasks."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkvbench import tasks
from qkvbench.cost import step_memory
from qkvbench.experiment import Experiment
from qkvbench.results.store import Store
from qkvbench.task_ref import TaskRef, parse_task

# Records of studies in a clone; an installed package has none.
STUDIES = Path(__file__).parents[3] / "studies"
# Shorter runs are no basis for an estimate.
LEAST_STEPS = 50


@dataclass(frozen=True)
class Known:
    """Estimates from records of a task: seconds a step, with its share of scoring; record size.

    ``source`` describes the records.
    """

    step_s: float
    record_bytes: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """The estimate for one task of a study. ``run_s`` and ``disk_bytes`` are None without records.

    ``step_bytes`` bounds the memory of a step.
    """

    task: str
    runs: int
    left: int
    run_s: float | None
    source: str | None
    step_bytes: int
    disk_bytes: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds of the remaining runs, one after the other."""
        return None if self.run_s is None else self.left * self.run_s


def forecasts(
    experiments: Sequence[Experiment], missing: Iterable[Experiment], store: Store
) -> list[Forecast]:
    """The estimate for each task of the runs and their dependencies, in their order."""
    left = list(missing)
    planned = dict.fromkeys([*experiments, *left])
    names = list(dict.fromkeys(each.task for each in planned))
    found = _estimates({str(name.inputs) for name in names}, store)
    return [
        _forecast(
            name,
            [each for each in planned if each.task == name],
            sum(each.task == name for each in left),
            found.get(str(name.inputs)),
        )
        for name in names
    ]


def _forecast(
    name: TaskRef, runs: Sequence[Experiment], left: int, known: Known | None
) -> Forecast:
    steps = statistics.fmean(each.training.steps for each in runs)
    task = tasks.find(name)
    return Forecast(
        task=str(name),
        runs=len(runs),
        left=left,
        run_s=known and known.step_s * steps,
        source=known and known.source,
        step_bytes=max(step_memory(each, task.tokens, task.second_tokens).total for each in runs),
        disk_bytes=known and known.record_bytes * left,
    )


def _estimates(wanted: set[str], store: Store) -> Mapping[str, Known]:
    """Estimates for each task from its own store, or else from the studies of this clone."""
    found = _from_records(wanted, [store.path], "records in this store")
    if missing := wanted - found.keys():
        found |= _from_records(
            missing, sorted(STUDIES.glob("*")), "studies/, other arms and machines too"
        )
    return found


def _from_records(wanted: set[str], folders: Sequence[Path], source: str) -> dict[str, Known]:
    steps: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("runs/[!.]*.json"))):
        content = path.read_bytes()
        try:
            value: dict[str, Any] = json.loads(content)
            task = str(parse_task(value["task"]).inputs)
            if task in wanted and value["status"] == "done":
                count: int = value["experiment"]["training"]["steps"]
                if count >= LEAST_STEPS:
                    steps.setdefault(task, []).append(value["observed"]["train_s"] / count)
                sizes.setdefault(task, []).append(len(content))
        except (ValueError, TypeError, KeyError):
            # Not a record; the report warns of it.
            continue
    return {
        task: Known(statistics.median(each), statistics.fmean(sizes[task]), source)
        for task, each in steps.items()
    }
