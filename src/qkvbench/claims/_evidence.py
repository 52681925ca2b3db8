"""What stores show of two arms on a task. The one file of the ledger that reads a study's view."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkvbench.results.stats import (
    LEVEL,
    Comparison,
    Count,
    Difference,
    Tally,
    boschloo,
    contrast,
    holm,
)
from qkvbench.results.store import Store
from qkvbench.results.view import Cell, TaskView, View, view

# What counts as clear.
CLEAR = LEVEL


@dataclass(frozen=True)
class Shown:
    """One store: the folder's name, and the study that is in it."""

    name: str
    view: View


@dataclass(frozen=True)
class Shift:
    """The arm's mean score minus the other's, with its 95% interval and p value."""

    metric: str
    better: Literal["higher", "lower"]
    value: float
    low: float
    high: float
    p: float

    @property
    def gain(self) -> float:
        """The shift with the sign that makes more of it better."""
        return self.value if self.better == "higher" else -self.value

    @property
    def largest_loss(self) -> float:
        """How much may be lost, at the interval's worse end."""
        return -self.low if self.better == "higher" else self.high

    @property
    def smallest_loss(self) -> float:
        """How much is lost at least, at the interval's better end."""
        return -self.high if self.better == "higher" else self.low

    @property
    def text(self) -> str:
        """The shift with its interval, in the task's own unit."""
        places = 3 if min(abs(self.low), abs(self.high)) >= 0.01 else 4
        value, low, high = (
            f"{each:+.{places}f}".replace("-", "−") for each in (self.value, self.low, self.high)
        )
        return f"{self.metric} {value} ({low} to {high})"


@dataclass(frozen=True)
class Solved:
    """How many seeds of the arm, and of the other, solved the task; p of the exact test."""

    arm: int
    other: int
    seeds: int
    p: float

    @property
    def gain(self) -> float:
        """Seeds more than the other."""
        return self.arm - self.other

    @property
    def text(self) -> str:
        """Both counts and the p value."""
        p = "p<0.001" if self.p < 0.001 else f"p={self.p:.2g}"
        return f"solved {self.arm} of {self.seeds} seeds against {self.other}, {p}"


@dataclass(frozen=True)
class Silent:
    """Why the runs compare nothing."""

    reason: str

    @property
    def text(self) -> str:
        """The reason."""
        return f"nothing is compared: {self.reason}"


@dataclass(frozen=True)
class Piece:
    """What one store shows of one arm against another on one task.

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
    outcome: Shift | Solved | Silent

    @property
    def text(self) -> str:
        """Store, task, outcome, and how large the evidence is."""
        return (
            f"{self.task} in {self.store}: `{self.arm}` against `{self.against}`, "
            f"{self.outcome.text}; {self.seeds} seeds, {self.steps:,} steps, "
            f"{self.parameters:,} parameters"
        )


def opened(folder: Path) -> Shown:
    """The study in this folder; StoreError where it cannot be read."""
    return Shown(folder.resolve().name, view(Store(folder)))


def pieces(
    shown: Sequence[Shown], tasks: Iterable[str], *, arm: str, against: str
) -> tuple[Piece, ...]:
    """All that the stores show of the two arms on these tasks; no run counts twice."""
    found = [
        piece
        for name in tasks
        for study in shown
        for task in study.view.tasks
        if task.name == name
        for piece in [_piece(study.name, task, arm, against)]
        if piece is not None
    ]
    return tuple(piece for index, piece in enumerate(found) if not _again(piece, index, found))


def _again(piece: Piece, index: int, found: Sequence[Piece]) -> bool:
    """Whether another piece has all of its runs, and more of them or an earlier place."""
    runs = set(piece.runs)
    return any(
        runs < set(other.runs) or (runs == set(other.runs) and place < index)
        for place, other in enumerate(found)
    )


def _piece(store: str, task: TaskView, arm: str, against: str) -> Piece | None:
    cells = {cell.variant: cell for cell in task.cells if cell.runs}
    if arm not in cells or against not in cells:
        return None
    return Piece(
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
) -> Shift | Solved | Silent:
    result = task.result
    if result.standing != "compared":
        return Silent(result.standing)
    partly = [name for name in (arm, against) if name in result.incomplete]
    if partly:
        return Silent(f"`{partly[0]}` is incomplete")
    match result:
        case Comparison():
            return _shift(task, result, cells, arm, against)
        case Tally(counts=counts):
            return _solved(counts[arm], counts[against], baseline=against == result.baseline)


def _shift(
    task: TaskView, result: Comparison, cells: dict[str, Cell], arm: str, against: str
) -> Shift | Silent:
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
            return Shift(name, task.metric.better, value, low, high, p)
        case _:
            return Silent("no interval")


def _solved(arm: Count, other: Count, *, baseline: bool) -> Solved | Silent:
    p = arm.p if baseline else boschloo(arm.solved, other.solved, seeds=arm.seeds)
    if p is None:
        return Silent("no test")
    return Solved(arm.solved, other.solved, arm.seeds, p)


def together(p: Mapping[str, float]) -> dict[str, float]:
    """The p values, corrected for being asked all at once."""
    return holm(p)


def kernels(shown: Sequence[Shown]) -> tuple[tuple[str, str, str], ...]:
    """Store, device and kernel of everything that was measured."""
    return tuple(
        (study.name, each.machine.device, each.kernel)
        for study in shown
        for each in study.view.measurements.values()
    )
