"""What is left of a study and what it will take, told by records of the same tasks."""

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

# Where a clone keeps the records of its studies; an installed package has none.
STUDIES = Path(__file__).parents[3] / "studies"
# A handful of steps tell nothing of many.
LEAST_STEPS = 50


@dataclass(frozen=True)
class Known:
    """What records say of a task: seconds for a step, its share of all else included; their size.

    ``source`` says which records these are.
    """

    step_s: float
    record_bytes: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """One task of a study. ``run_s`` and ``disk_bytes`` are None where no record tells.

    ``step_bytes`` is what a step holds at most, computed; None for models that read two inputs.
    """

    task: str
    runs: int
    left: int
    run_s: float | None
    source: str | None
    step_bytes: int | None
    disk_bytes: float | None

    @property
    def left_s(self) -> float | None:
        """What is left, one run after the other."""
        return None if self.run_s is None else self.left * self.run_s


def forecasts(
    experiments: Sequence[Experiment], missing: Iterable[Experiment], store: Store
) -> list[Forecast]:
    """Each task of the runs, those that come first included, in their order."""
    left = list(missing)
    planned = dict.fromkeys([*experiments, *left])
    names = list(dict.fromkeys(each.task for each in planned))
    found = _known({str(name.inputs) for name in names}, store)
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
    return Forecast(
        task=str(name),
        runs=len(runs),
        left=left,
        run_s=known and known.step_s * steps,
        source=known and known.source,
        step_bytes=_step_bytes(runs, tasks.find(name).tokens),
        disk_bytes=known and known.record_bytes * left,
    )


def _step_bytes(runs: Sequence[Experiment], tokens: int) -> int | None:
    try:
        return max(step_memory(each, tokens).total for each in runs)
    except ValueError:
        return None


def _known(wanted: set[str], store: Store) -> Mapping[str, Known]:
    """Of each task what its own store says, or else what the studies of this clone say."""
    found = _told(wanted, [store.path], "records in this store")
    if missing := wanted - found.keys():
        found |= _told(missing, sorted(STUDIES.glob("*")), "studies/, other arms and machines too")
    return found


def _told(wanted: set[str], folders: Sequence[Path], source: str) -> dict[str, Known]:
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
            # Not a record: the report says so.
            continue
    return {
        task: Known(statistics.median(each), statistics.fmean(sizes[task]), source)
        for task, each in steps.items()
    }
