"""Comparisons of two arms over all the runs in some folders. Only this file reads records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from qkvbench import tasks
from qkvbench.claims.kit.measured import Benchmark, MeasuredChange, changes, read_benchmarks
from qkvbench.experiment import Experiment
from qkvbench.results.critical import LEVEL
from qkvbench.results.evidence import Run, Setting, runs_of, settings, unnamed
from qkvbench.results.record import Measurement
from qkvbench.results.stats import Comparison, Difference, Tally
from qkvbench.results.store import Store
from qkvbench.results.view import View
from qkvbench.task_ref import TaskRef, parse_task
from qkvbench.tasks import Metric


@dataclass(frozen=True)
class StoreView:
    """The contents of one folder: its name, its runs, and all that was timed or measured there."""

    name: str
    runs: tuple[Run, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()


@dataclass(frozen=True)
class ScoreDifference:
    """The arm's mean score minus the other's, with its 95% interval and p value."""

    metric: str
    better: Literal["higher", "lower"]
    value: float
    low: float
    high: float
    p: float
    certain: tuple[float, float]

    @property
    def is_loss(self) -> bool:
        """Whether the arm's mean is worse."""
        return (self.value < 0) == (self.better == "higher")

    def largest_loss_at(self, level: float) -> float:
        """The loss at the worse end of the interval of this level, likely or certain."""
        low, high = (self.low, self.high) if level == LEVEL else self.certain
        return -low if self.better == "higher" else high

    def smallest_loss_at(self, level: float) -> float:
        """The loss at the better end of the interval of this level."""
        low, high = (self.low, self.high) if level == LEVEL else self.certain
        return -high if self.better == "higher" else low

    @property
    def text(self) -> str:
        """The difference with its interval, in the task's own unit."""
        places, nearest = 4, min(abs(self.low), abs(self.high))
        if nearest >= 0.01:
            places = 3
        # An end of an interval without zero is not printed as zero.
        while self.p < LEVEL and nearest and round(nearest, places) == 0:
            places += 1
        value, low, high = (
            f"{each:+.{places}f}".replace("-", "−") for each in (self.value, self.low, self.high)
        )
        return f"{self.metric} {value} ({low} to {high})"


@dataclass(frozen=True)
class SolvedCounts:
    """The seeds of the arm, and of the other, that solved the task.

    ``p`` is of the log-rank test of the steps at which they did; ``is_loss`` says whether the arm's
    seeds solved it later, or fewer of them did.
    """

    arm: int
    seeds: int
    other: int
    other_seeds: int
    is_loss: bool
    p: float

    @property
    def text(self) -> str:
        """Both counts and the p value."""
        p = "p<0.001" if self.p < 0.001 else f"p={self.p:.2g}"
        counts = f"{self.arm} of {self.seeds} seeds against {self.other} of {self.other_seeds}"
        return f"solved {counts}, {p}"


@dataclass(frozen=True)
class Conditions:
    """The size of training runs, and how well their baseline does.

    ``parameters`` are the baseline's, ``tokens`` the length of a sequence, ``sequences`` the number
    of them in training. ``score`` is the baseline's mean accuracy; None for other metrics, and for
    tasks of which solved seeds are counted.
    """

    parameters: int
    tokens: int
    sequences: int
    score: float | None


@dataclass(frozen=True)
class Evidence:
    """The comparison of one arm with another in all runs of one experiment.

    ``stores`` are the folders that have such runs, ``seeds`` the numbers of runs of the other arm
    and of this one, ``runs`` the ids of their records.
    """

    stores: tuple[str, ...]
    task: str
    arm: str
    against: str
    seeds: tuple[int, int]
    steps: int
    conditions: Conditions
    runs: tuple[str, ...]
    outcome: ScoreDifference | SolvedCounts

    @property
    def place(self) -> str:
        """The folders, in a few words."""
        first, *others = self.stores
        return f"{first} and {len(others)} more" if others else first

    @property
    def short(self) -> str:
        """Task and outcome."""
        return f"{self.task} {self.outcome.text}"

    @property
    def summary(self) -> str:
        """Task, folders, steps and outcome."""
        return f"{self.task} ({self.place}, {self.steps:,} steps): {self.outcome.text}"

    @property
    def text(self) -> str:
        """Task, arms, outcome, and the size of the evidence."""
        seeds = " and ".join(str(each) for each in dict.fromkeys(self.seeds))
        return (
            f"{self.task} in {', '.join(self.stores)}: `{self.arm}` against `{self.against}`, "
            f"{self.outcome.text}; {seeds} seeds, {self.steps:,} steps, "
            f"{self.conditions.parameters:,} parameters"
        )


@dataclass(frozen=True)
class Pool:
    """All that some folders hold together, the same in whichever order they are given.

    ``runs`` are those of plain arms, by the inputs of their task; ``measured`` are the measured
    changes, each with the place of its record.
    """

    runs: Mapping[TaskRef, Sequence[Run]]
    measured: tuple[tuple[str, MeasuredChange], ...]

    def comparisons(self, task: str, *, arm: str, against: str) -> tuple[Evidence, ...]:
        """The two arms on this task: one comparison for each experiment, most seeds first.

        The same seeds on two backends are the same draws, so only the one with more runs counts.
        """
        key = (parse_task(task).inputs, arm, against)
        if key not in self._settings:
            found = settings(self.runs.get(key[0], ()), arm=arm, against=against)
            self._settings[key] = tuple(sorted(found, key=_precedence))
        evidence: dict[Experiment, Evidence] = {}
        for setting in self._settings[key]:
            if _is_of(setting, task) and (each := _evidence(setting, task, arm, against)):
                # Gates are torch's alone, and need no other backend.
                shared = setting.shared
                alike = shared if shared.other_attention else replace(shared, backend="")
                evidence.setdefault(alike, each)
        return tuple(evidence.values())

    def changes(self, quantity: str, arms: Sequence[str]) -> tuple[tuple[str, MeasuredChange], ...]:
        """Measured changes of a quantity, for these arms."""
        return tuple(
            (place, each)
            for place, each in self.measured
            if each.quantity == quantity and each.arm in arms
        )

    @cached_property
    def _settings(self) -> dict[tuple[TaskRef, str, str], tuple[Setting, ...]]:
        """The settings that were asked for: several claims are about the same two arms."""
        return {}


def open_store(folder: Path) -> StoreView:
    """The records in this folder; StoreError if they cannot be read."""
    store, name = Store(folder), folder.resolve().name
    benchmarks = read_benchmarks(folder)
    runs = tuple(runs_of(store, name))
    return StoreView(name, runs, store.measurements().good, benchmarks)


def of_study(study: View) -> StoreView:
    """The runs and measurements of one study."""
    tuned = bool(study.tuning) or study.carried is not None
    runs = tuple(Run(study.name, record, tuned=tuned) for record in study.runs)
    return StoreView(study.name, runs, tuple(study.measurements.values()))


def pool(stores: Sequence[StoreView]) -> Pool:
    """All that these folders hold."""
    runs: dict[TaskRef, list[Run]] = {}
    for store in sorted(stores, key=lambda store: store.name):
        for run in store.runs:
            # Claims are of arms that learn from data alone.
            if (
                run.record.arm == run.record.variant
                and run.record.parsed_experiment.teacher is None
            ):
                runs.setdefault(parse_task(run.record.task).inputs, []).append(run)
    measured = [found for store in stores for found in _measured(store)]
    measured.sort(key=lambda found: (found[0], found[1].model, found[1].setting))
    return Pool(runs, tuple(measured))


def _measured(store: StoreView) -> list[tuple[str, MeasuredChange]]:
    timed = [(store.name, each) for record in store.measurements for each in changes(record)]
    return timed + [(each.command, found) for each in store.benchmarks for found in each.found]


def _precedence(setting: Setting) -> tuple[int, int, str]:
    """Settings with more runs of the arm come first, then those in more folders."""
    return -setting.seeds[1], -len(setting.folders), setting.shared.backend


def _is_of(setting: Setting, task: str) -> bool:
    """Whether runs of this task, with whatever budget, are in the setting."""
    if task in setting.names:
        return True
    own = unnamed(replace(setting.shared, model=tasks.find(task).model))
    return own.model == setting.shared.model


def _evidence(setting: Setting, task: str, arm: str, against: str) -> Evidence | None:
    found, training = tasks.find(task), setting.shared.training
    outcome = _outcome(setting, arm, against, found.metric)
    if outcome is None:
        return None
    return Evidence(
        stores=tuple(sorted(setting.folders)),
        task=task,
        arm=arm,
        against=against,
        seeds=setting.seeds,
        steps=training.steps,
        conditions=Conditions(
            parameters=setting.parameters,
            tokens=found.tokens,
            sequences=training.steps * training.batch,
            score=_accuracy(setting, against) if found.metric.unit == "share" else None,
        ),
        runs=setting.runs,
        outcome=outcome,
    )


def _accuracy(setting: Setting, arm: str) -> float | None:
    """The arm's mean accuracy; None on a task of which solved seeds are counted."""
    result = setting.result
    return result.means[arm].value if isinstance(result, Comparison) else None


def _outcome(
    setting: Setting, arm: str, against: str, metric: Metric
) -> ScoreDifference | SolvedCounts | None:
    """The comparison of the two arms; None if nothing was compared, or if runs diverged.

    Only this function reads what the statistics of the results say.
    """
    if setting.verdict == "diverged":
        # A difference of the runs that are left would say too much for the arm.
        return None
    match setting.result:
        case Tally(standing="compared", counts=counts):
            own, other = counts.get(arm), counts[against]
            if own is None or own.p is None:
                return None
            is_loss = own.sooner is not True
            return SolvedCounts(
                own.solved, own.seeds, other.solved, other.seeds, is_loss=is_loss, p=own.p
            )
        case Comparison(standing="compared", differences=differences):
            match differences.get(arm):
                case Difference(
                    value, float(low), float(high), float(p), certain=(float(), float()) as certain
                ):
                    name = metric.name.replace("_", " ")
                    return ScoreDifference(name, metric.better, value, low, high, p, certain)
                case _:
                    return None
        case _:
            return None
