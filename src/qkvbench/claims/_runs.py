"""The test that runs decide: what is expected of an arm, on which tasks, and at which scale."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench import recipes, tasks
from qkvbench.claims._claim import Claim, Finding, Verdict
from qkvbench.claims._evidence import Piece, Shift, Shown, Silent, pieces
from qkvbench.cost import parameters
from qkvbench.model import Model
from qkvbench.results.stats import LEVEL, holm

# Runs speak for a source's models where theirs have at most this many times more or fewer numbers.
ALIKE = 4

Expected = Literal["worse", "no worse"]


@dataclass(frozen=True)
class Scale:
    """Where a source made its claim: the smallest and the largest model, and the setting.

    ``takes`` says what runs there would need. ``tasks`` are those of this bench that are of the
    same setting; often there is none.
    """

    models: Callable[[], tuple[Model, Model]]
    setting: str
    takes: Callable[[], str]
    tasks: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """The learned numbers of the smallest and of the largest model."""
        smallest, largest = self.models()
        return parameters(smallest).total, parameters(largest).total

    def holds(self, task: str, size: int) -> bool:
        """Whether runs of this task and number of parameters are at this scale."""
        smallest, largest = self.sizes
        return task in self.tasks and smallest / ALIKE <= size <= largest * ALIKE

    def away(self, size: int) -> str:
        """How far off a model of this many parameters is."""
        smallest, largest = self.sizes
        if size < smallest:
            return f"1/{smallest / size:,.0f} of the source's parameters"
        if size > largest:
            return f"{size / largest:,.0f} times the source's parameters"
        return "as many parameters as the source's"


@dataclass(frozen=True)
class Runs:
    """An arm beside another on some tasks; all comparisons of the claim hold together (Holm).

    "No worse" needs a ``margin`` (in the tasks' unit) to be supported: the whole interval must lie
    within it. Without one, or for seeds that are counted, it can be refuted only.
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
        ruling = self._ruling(own)
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

    def _small(self, found: Sequence[Piece]) -> Finding | None:
        ruling = self._ruling(found)
        if ruling is None:
            return None
        size = max(piece.parameters for piece in ruling.pieces)
        why = f"At {self.scale.away(size)}, not {self.scale.setting}: {ruling.why}"
        return Finding(ruling.verdict, why, pieces=ruling.pieces)

    def _ruling(self, found: Sequence[Piece]) -> Finding | None:
        """What the pieces say together; None where none of them compares anything."""
        speaking = [piece for piece in found if not isinstance(piece.outcome, Silent)]
        if not speaking:
            return None
        p = holm({str(index): _p(piece) for index, piece in enumerate(speaking)})
        each = [self._one(piece, p[str(index)]) for index, piece in enumerate(speaking)]
        verdict = self._together(zip((piece.task for piece in speaking), each, strict=True))
        telling = [piece for piece, one in zip(speaking, each, strict=True) if one == verdict]
        why = "; ".join(_brief(piece) for piece in telling or speaking)
        also = len(speaking) - len(telling or speaking)
        return Finding(
            verdict,
            f"{why}{f'; {also} more beside it' if also else ''}.",
            pieces=tuple(speaking),
        )

    def _one(self, piece: Piece, p: float) -> Verdict:
        outcome = piece.outcome
        assert not isinstance(outcome, Silent)
        if p < LEVEL:
            return "supported" if (outcome.gain < 0) == (self.expected == "worse") else "refuted"
        small = isinstance(outcome, Shift) and self.margin is not None
        if self.expected == "no worse" and small and outcome.largest_loss <= self.margin:
            return "supported"
        return "not distinguishable"

    def _together(self, each: Iterable[tuple[str, Verdict]]) -> Verdict:
        """One contradiction refutes; support must come from each task of the claim."""
        by_task: dict[str, set[Verdict]] = {}
        for task, verdict in each:
            by_task.setdefault(task, set()).add(verdict)
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
            if task in study.seeds and task in tasks.names()
        )


def _p(piece: Piece) -> float:
    assert not isinstance(piece.outcome, Silent)
    return piece.outcome.p


def _brief(piece: Piece) -> str:
    return f"{piece.task} ({piece.store}): {piece.outcome.text}"
