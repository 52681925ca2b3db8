"""Comparisons of two arms in the stores of studies. Only this file reads a study's view."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkvbench.results.stats import Difference, Tally, count_difference, difference
from qkvbench.results.store import Store
from qkvbench.results.view import TaskView, View, view


@dataclass(frozen=True)
class StoreView:
    """One store: the name of its folder, and a view of its study."""

    name: str
    view: View


@dataclass(frozen=True)
class ScoreDifference:
    """The arm's mean score minus the other's, with its 95% interval and p value."""

    metric: str
    better: Literal["higher", "lower"]
    value: float
    low: float
    high: float
    p: float

    @property
    def gain(self) -> float:
        """The difference with the sign that makes a gain positive."""
        return self.value if self.better == "higher" else -self.value

    @property
    def largest_loss(self) -> float:
        """The loss at the interval's worse end."""
        return -self.low if self.better == "higher" else self.high

    @property
    def smallest_loss(self) -> float:
        """The loss at the interval's better end."""
        return -self.high if self.better == "higher" else self.low

    @property
    def text(self) -> str:
        """The difference with its interval, in the task's own unit."""
        places = 3 if min(abs(self.low), abs(self.high)) >= 0.01 else 4
        value, low, high = (
            f"{each:+.{places}f}".replace("-", "−") for each in (self.value, self.low, self.high)
        )
        return f"{self.metric} {value} ({low} to {high})"


@dataclass(frozen=True)
class SolvedCounts:
    """The seeds of the arm, and of the other, that solved the task; p of the exact test."""

    arm: int
    other: int
    seeds: int
    p: float

    @property
    def gain(self) -> float:
        """The arm's count minus the other's."""
        return self.arm - self.other

    @property
    def text(self) -> str:
        """Both counts and the p value."""
        p = "p<0.001" if self.p < 0.001 else f"p={self.p:.2g}"
        return f"solved {self.arm} of {self.seeds} seeds against {self.other}, {p}"


@dataclass(frozen=True)
class Evidence:
    """The comparison of one arm with another on one task in one store.

    ``runs`` are the ids of the records of both arms; ``parameters`` the other arm's.
    """

    store: str
    task: str
    arm: str
    against: str
    seeds: int
    steps: int
    parameters: int
    runs: tuple[str, ...]
    outcome: ScoreDifference | SolvedCounts

    @property
    def text(self) -> str:
        """Store, task, outcome, and the size of the evidence."""
        return (
            f"{self.task} in {self.store}: `{self.arm}` against `{self.against}`, "
            f"{self.outcome.text}; {self.seeds} seeds, {self.steps:,} steps, "
            f"{self.parameters:,} parameters"
        )


def open_store(folder: Path) -> StoreView:
    """The study in this folder; StoreError if it cannot be read."""
    return StoreView(folder.resolve().name, view(Store(folder)))


def collect_evidence(
    stores: Sequence[StoreView], tasks: Iterable[str], *, arm: str, against: str
) -> tuple[Evidence, ...]:
    """All comparisons of the two arms on these tasks; no run counts twice."""
    found = [
        (store.name, task, _runs(task, against) + _runs(task, arm))
        for name in tasks
        for store in stores
        for task in store.view.tasks
        if task.name == name and _runs(task, arm) and _runs(task, against)
    ]
    # A store is skipped if another has the same runs and more, or the same and comes first.
    sets = [set(runs) for _, _, runs in found]
    return tuple(
        Evidence(
            store=store,
            task=task.name,
            arm=arm,
            against=against,
            seeds=len(task.cell(arm).scores),
            steps=task.steps,
            parameters=task.costs[against].total_parameters,
            runs=runs,
            outcome=outcome,
        )
        for index, (store, task, runs) in enumerate(found)
        if not any(sets[index] < other for other in sets) and sets.index(sets[index]) == index
        for outcome in [_outcome(task, arm, against)]
        if outcome is not None
    )


def kernels(stores: Sequence[StoreView]) -> tuple[tuple[str, str, str], ...]:
    """Store, device and kernel of each measurement."""
    return tuple(
        (store.name, each.machine.device, each.kernel)
        for store in stores
        for each in store.view.measurements.values()
    )


def _runs(task: TaskView, arm: str) -> tuple[str, ...]:
    return tuple(run.id for cell in task.cells if cell.variant == arm for run in cell.runs)


def _outcome(task: TaskView, arm: str, against: str) -> ScoreDifference | SolvedCounts | None:
    """The comparison of the two arms; None if the runs are too few or incomplete."""
    result = task.result
    if result.standing != "compared" or {arm, against} & set(result.incomplete):
        return None
    own, other = task.cell(arm), task.cell(against)
    if isinstance(result, Tally):
        times = [
            [math.inf if step is None else step for step in cell.solved_steps.values()]
            for cell in (other, own)
        ]
        count, base = count_difference(*times), result.counts[against]
        if count.p is None:
            return None
        return SolvedCounts(count.solved, base.solved, count.seeds, count.p)
    scores = [list(cell.scores.values()) for cell in (other, own)]
    if not all(scores):
        return None
    match difference(scores[0], scores[1], metric=task.metric):
        case Difference(value, float(low), float(high), float(p)):
            metric = task.metric.name.replace("_", " ")
            return ScoreDifference(metric, task.metric.better, value, low, high, p)
        case _:
            return None
