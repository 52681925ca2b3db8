"""The learning rates that other studies tuned, for `run --rates`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from qkvbench.cli.parser import RequestError
from qkvbench.experiment import Experiment
from qkvbench.recipes import Study
from qkvbench.results.record import Tuning
from qkvbench.results.store import Store, StoreError


def with_rates_of(folders: Sequence[Path], study: Study) -> Study:
    """The study with the learning rates that tuned studies chose; RequestError if they lack one.

    The factors of the task's own rate are taken over, each from the first folder that has one. A
    rate falls as one over the width of a model (arXiv:2203.03466, table 3, for matrices under
    Adam), so they are times the ratio of widths.
    """
    tuned = [_TunedRates.read(folder) for folder in folders]
    for task in study.seeds:
        if len({effort for each in tuned if (effort := each.efforts.get(task))}) > 1:
            raise RequestError(
                f"{_joined(str(folder) for folder in folders)} tuned {task} with other rates, "
                "seeds, steps or models, so their arms were not tuned equally.\nName one of them. "
                "Nothing was run."
            )
    short = [each.name for each in tuned if each.is_smoke]
    if short and not study.smoke:
        raise RequestError(
            f"{_joined(short)} tuned in very few steps, by --smoke, which finds no rates.\n"
            "Tune without it. Nothing was run."
        )
    rates: dict[str, dict[str, float]] = {}
    for run in study.experiments():
        task = str(run.task)
        of_width_one = next(filter(None, (each.of(task, run.arm) for each in tuned)), None)
        if of_width_one is None:
            raise RequestError(
                f"{_joined(str(folder) for folder in folders)} has chosen no learning rate for "
                f"{run.arm} on {task}.\nTune these arms there, name further folders with --rates, "
                "or with --tasks and --variants arms that it has. Nothing was run."
            )
        rates.setdefault(task, {})[run.arm] = of_width_one / run.model.geometry.d_model
    return replace(study, rates=rates, rates_of=_joined(each.name for each in tuned))


@dataclass(frozen=True)
class _TunedRates:
    """The factors that a tuned study chose, and the width of its model on each task.

    ``efforts`` is how a task was tuned, beside the arm and the rate; it has those tasks that the
    study tuned itself.
    """

    name: str
    tuning: Tuning
    widths: Mapping[str, int]
    efforts: Mapping[str, str]
    is_smoke: bool

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of a folder; RequestError if it has none."""
        store = Store(folder)
        try:
            info, runs = store.study(), store.runs().good
        except StoreError as error:
            raise RequestError(str(error)) from None
        if info is None or info.tuning is None:
            raise RequestError(
                f"{folder} has no tuned learning rates; 'qkvbench run … --tune lr' chooses some."
            )
        own = {*info.runs, *info.tuning.ids}
        return cls(
            info.tuning.taken_from or folder.resolve().name,
            info.tuning,
            {
                run.task: run.parsed_experiment.model.geometry.d_model
                for run in runs
                if run.id in own
            },
            {
                run.task: _effort(run.parsed_experiment, info.tuning)
                for run in runs
                if run.id in info.tuning.ids
            },
            info.name.endswith("-smoke"),
        )

    def of(self, task: str, arm: str) -> float | None:
        """The arm's factor times the width, for a model of width 1; None if none was chosen."""
        factor = self.tuning.chosen.get(task, {}).get(arm)
        return factor * self.widths[task] if factor and task in self.widths else None


def _effort(run: Experiment, tuning: Tuning) -> str:
    """The conditions that the tuning of all arms of a task shares, as text to compare."""
    model, training = run.model, replace(run.training, learning_rate=1.0)
    how = (tuning.factors, tuning.seeds, training, run.task_version, run.precision)
    return repr((*how, model.geometry, len(model.blocks)))


def _joined(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))
