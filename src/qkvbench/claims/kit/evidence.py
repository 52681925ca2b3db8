"""Comparisons of two arms in the stores of studies. Only this file reads a study's view."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkvbench.results.stats import Comparison, Count, Difference, Tally, boschloo, contrast
from qkvbench.results.store import Store
from qkvbench.results.view import Cell, TaskView, View, view


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
class NoComparison:
    """The reason why the runs give no comparison."""

    reason: str

    @property
    def text(self) -> str:
        """The reason as a clause."""
        return f"nothing is compared: {self.reason}"


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
    outcome: ScoreDifference | SolvedCounts | NoComparison

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
    collected = [
        evidence
        for name in tasks
        for store in stores
        for task in store.view.tasks
        if task.name == name
        for evidence in [_evidence(store.name, task, arm, against)]
        if evidence is not None
    ]
    return tuple(
        evidence
        for index, evidence in enumerate(collected)
        if not _is_duplicate(evidence, index, collected)
    )


def kernels(stores: Sequence[StoreView]) -> tuple[tuple[str, str, str], ...]:
    """Store, device and kernel of each measurement."""
    return tuple(
        (store.name, each.machine.device, each.kernel)
        for store in stores
        for each in store.view.measurements.values()
    )


def _is_duplicate(evidence: Evidence, index: int, collected: Sequence[Evidence]) -> bool:
    """Whether another comparison has all of these runs, and more of them or a smaller index."""
    runs = set(evidence.runs)
    return any(
        runs < set(other.runs) or (runs == set(other.runs) and i < index)
        for i, other in enumerate(collected)
    )


def _evidence(store: str, task: TaskView, arm: str, against: str) -> Evidence | None:
    cells = {cell.variant: cell for cell in task.cells if cell.runs}
    if arm not in cells or against not in cells:
        return None
    return Evidence(
        store=store,
        task=task.name,
        arm=arm,
        against=against,
        seeds=len(cells[arm].scores),
        steps=task.steps,
        parameters=task.costs[against].total_parameters,
        runs=tuple(run.id for name in (against, arm) for run in cells[name].runs),
        outcome=_outcome(task, cells, arm, against),
    )


def _outcome(
    task: TaskView, cells: dict[str, Cell], arm: str, against: str
) -> ScoreDifference | SolvedCounts | NoComparison:
    result = task.result
    if result.standing != "compared":
        return NoComparison(result.standing)
    for name in (arm, against):
        if name in result.incomplete:
            return NoComparison(f"`{name}` is incomplete")
    match result:
        case Comparison():
            return _score_difference(task, result, cells, arm, against)
        case Tally(counts=counts):
            return _solved_counts(counts[arm], counts[against], baseline=against == result.baseline)


def _score_difference(
    task: TaskView, result: Comparison, cells: dict[str, Cell], arm: str, against: str
) -> ScoreDifference | NoComparison:
    difference: Difference | None = (
        result.differences.get(arm)
        if against == result.baseline
        else contrast(
            {name: cell.scores for name, cell in cells.items()}, result, arms=(against, arm)
        )
    )
    match difference:
        case Difference(value, float(low), float(high), float(p)):
            name = task.metric.name.replace("_", " ")
            return ScoreDifference(name, task.metric.better, value, low, high, p)
        case _:
            return NoComparison("no interval")


def _solved_counts(arm: Count, other: Count, *, baseline: bool) -> SolvedCounts | NoComparison:
    p = arm.p if baseline else boschloo(arm.solved, other.solved, seeds=arm.seeds)
    if p is None:
        return NoComparison("no test")
    return SolvedCounts(arm.solved, other.solved, arm.seeds, p)
