"""The test that runs decide: what is expected of an arm, on which tasks, and at which scale."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench import recipes
from qkvbench.claims._claim import Claim, Finding, Verdict
from qkvbench.claims._evidence import CLEAR, Piece, Shift, Shown, Silent, Solved, pieces, together
from qkvbench.cost import parameters
from qkvbench.model import Model

# Runs speak for a source's models where theirs have at most this many times more or fewer numbers.
ALIKE = 4

Expected = Literal["worse", "no worse"]


@dataclass(frozen=True)
class Scale:
    """Where a source made its claim: the smallest and the largest model, and the setting.

    ``models`` is None where the source does not say enough to count their parameters.
    ``takes`` says what runs there would need. ``tasks`` are those of this bench that are of the
    same setting; often there is none.
    """

    models: Callable[[], tuple[Model, Model]] | None
    setting: str
    takes: Callable[[], str]
    tasks: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int] | None:
        """The learned numbers of the smallest and of the largest model."""
        if self.models is None:
            return None
        smallest, largest = self.models()
        return parameters(smallest).total, parameters(largest).total

    def holds(self, task: str, size: int) -> bool:
        """Whether runs of this task and number of parameters are at this scale."""
        if self.sizes is None or task not in self.tasks:
            return False
        smallest, largest = self.sizes
        return smallest / ALIKE <= size <= largest * ALIKE

    def away(self, size: int) -> str:
        """How far off a model of this many parameters is."""
        if self.sizes is None:
            return f"{size:,} parameters"
        smallest, largest = self.sizes
        if size < smallest:
            return f"1/{smallest / size:,.0f} of the source's parameters"
        if size > largest:
            return f"{size / largest:,.0f} times the source's parameters"
        return "as many parameters as the source's"


@dataclass(frozen=True)
class Runs:
    """An arm beside another on some tasks; all comparisons of the claim hold together (Holm).

    "No worse" allows a loss of ``margin``, in the tasks' unit: it is supported where the whole
    interval lies within, refuted where the whole interval lies beyond. Without one any clear loss
    refutes. Seeds that are counted have no margin.
    """

    arm: str
    expected: Expected
    tasks: tuple[str, ...]
    scale: Scale
    against: str = "q,k,v"
    margin: float | None = None

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """The verdict from runs at the claim's scale; else whether there could be such runs."""
        found = pieces(shown, self.tasks, arm=self.arm, against=self.against)
        own = [piece for piece in found if self.scale.holds(piece.task, piece.parameters)]
        ruling = self.ruling(own)
        others = self._small([piece for piece in found if piece not in own])
        if ruling is not None:
            return Finding(ruling.verdict, ruling.why, pieces=ruling.pieces, here=others)
        if self._open(claim.recipe):
            return Finding("not yet run", f"`qkvbench run {claim.recipe}` tests it.", here=others)
        return Finding(
            "not testable here", claim.arithmetic().says, self.scale.takes(), here=others
        )

    def beside(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """The verdict that the runs give at their own scale."""
        return self._small(pieces(shown, self.tasks, arm=self.arm, against=self.against))

    def ruling(self, found: Sequence[Piece]) -> Finding | None:
        """What the pieces say together; None where none of them compares anything."""
        speaking = [piece for piece in found if not isinstance(piece.outcome, Silent)]
        if not speaking:
            return None
        p = together({str(index): _p(piece) for index, piece in enumerate(speaking)})
        each: list[tuple[Piece, Verdict]] = [
            (piece, self._one(piece.outcome, p[str(index)])) for index, piece in enumerate(speaking)
        ]
        verdict = self._together(each)
        telling = [piece for piece, one in each if one == verdict]
        why = "; ".join(_brief(piece) for piece in telling or speaking)
        others = len(speaking) - len(telling or speaking)
        also = f"; {others} more {'does' if others == 1 else 'do'} not say so" if others else ""
        return Finding(verdict, f"{why}{also}.", pieces=tuple(speaking))

    def _small(self, found: Sequence[Piece]) -> Finding | None:
        ruling = self.ruling(found)
        if ruling is None:
            return None
        size = max(piece.parameters for piece in ruling.pieces)
        direction = ", and of the direction only" if self.expected == "worse" else ""
        why = f"Not of {self.scale.setting} but at {self.scale.away(size)}{direction}: {ruling.why}"
        return Finding(ruling.verdict, why, pieces=ruling.pieces)

    def _one(self, outcome: Shift | Solved | Silent, p: float) -> Verdict:
        """What one comparison says, by its p value adjusted for all of the claim."""
        allowed = self.margin or 0.0
        match outcome:
            case Shift() if self.expected == "no worse" and outcome.largest_loss <= allowed:
                return "supported"
            case Shift() if self.expected == "no worse" and outcome.smallest_loss <= allowed:
                return "not distinguishable"
            case Shift() | Solved() if p < CLEAR:
                lost = outcome.gain < 0
                return "supported" if lost == (self.expected == "worse") else "refuted"
            case _:
                return "not distinguishable"

    def _together(self, each: Iterable[tuple[Piece, Verdict]]) -> Verdict:
        """One contradiction refutes; support must come from each task of the claim."""
        by_task: dict[str, set[Verdict]] = {}
        for piece, verdict in each:
            by_task.setdefault(piece.task, set()).add(verdict)
        if any("refuted" in verdicts for verdicts in by_task.values()):
            return "refuted"
        if all("supported" in by_task.get(task, ()) for task in self.tasks):
            return "supported"
        return "not distinguishable"

    def _open(self, recipe: str | None) -> bool:
        """Whether the recipe makes runs of both arms at the claim's scale."""
        if recipe is None:
            return False
        study = recipes.find(recipe)
        return {self.arm, self.against} <= set(study.variants) and any(
            self.scale.holds(task, parameters(study.model_of(task)).total)
            for task in self.tasks
            if task in study.seeds
        )


def _p(piece: Piece) -> float:
    assert not isinstance(piece.outcome, Silent)
    return piece.outcome.p


def _brief(piece: Piece) -> str:
    return f"{piece.task} ({piece.store}, {piece.steps:,} steps): {piece.outcome.text}"
