"""The test that runs decide: the expected direction for an arm, on which tasks, at which scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qkvbench import recipes
from qkvbench.claims.kit.claim import Claim, Finding, Verdict
from qkvbench.claims.kit.evidence import (
    Evidence,
    ScoreDifference,
    SolvedCounts,
    StoreView,
    collect_evidence,
)
from qkvbench.cost import parameters
from qkvbench.model import Model
from qkvbench.results.critical import LEVEL, holm

# Runs are at a source's scale if their models have at most this many times more or fewer
# parameters than the source's.
MAX_SIZE_RATIO = 4

Expected = Literal["worse", "no worse"]


@dataclass(frozen=True)
class Scale:
    """The scale of a claim: the source's models, and the setting.

    ``models`` are the smallest and the largest, or the only one; none if the source does not give
    their sizes. ``requires`` describes the runs that a test at this scale would need. ``tasks`` are
    those of this bench in the same setting; often there is none.
    """

    models: tuple[Model, ...]
    setting: str
    requires: str
    tasks: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Parameters of the models."""
        return tuple(parameters(model).total for model in self.models)

    def covers(self, task: str, size: int) -> bool:
        """Whether runs of this task and number of parameters are at this scale."""
        if not self.sizes or task not in self.tasks:
            return False
        return min(self.sizes) / MAX_SIZE_RATIO <= size <= max(self.sizes) * MAX_SIZE_RATIO

    def relative_size(self, size: int) -> str:
        """A number of parameters relative to the source's, in words."""
        if not self.sizes:
            return f"{size:,} parameters"
        smallest, largest = min(self.sizes), max(self.sizes)
        if size < smallest:
            return f"1/{smallest / size:,.0f} of the source's parameters"
        if size > largest:
            return f"{size / largest:,.0f} times the source's parameters"
        return "as many parameters as the source's"


@dataclass(frozen=True)
class Runs:
    """An arm compared with another on some tasks; Holm's correction is over all comparisons.

    "No worse" allows a loss of ``margin``, in the tasks' unit: it is supported if the whole
    interval lies within the margin, refuted if the whole interval lies beyond. Without a margin
    any significant loss refutes. Counts of solved seeds have no margin.
    """

    arm: str
    expected: Expected
    tasks: tuple[str, ...]
    scale: Scale
    against: str = "q,k,v"
    margin: float | None = None

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
        """The finding from runs at the claim's scale; without them, whether a recipe has any."""
        collected = collect_evidence(stores, self.tasks, arm=self.arm, against=self.against)
        own = [each for each in collected if self.scale.covers(each.task, each.parameters)]
        others = self._at_own_scale([each for each in collected if each not in own])
        finding = self.combine(own)
        if finding is not None:
            return replace(finding, other_scale=others)
        if self._has_recipe(claim.recipe):
            reason = f"`qkvbench run {claim.recipe}` tests it."
            return Finding("not yet run", reason, other_scale=others)
        return Finding(
            "not testable here", claim.arithmetic().text, self.scale.requires, other_scale=others
        )

    def finding_at_own_scale(self, stores: Sequence[StoreView]) -> Finding | None:
        """The finding from all runs about models of their own size; None without runs."""
        return self._at_own_scale(
            collect_evidence(stores, self.tasks, arm=self.arm, against=self.against)
        )

    def combine(self, collected: Sequence[Evidence]) -> Finding | None:
        """The verdict of all comparisons together; None if there is none."""
        if not collected:
            return None
        p = holm({str(index): each.outcome.p for index, each in enumerate(collected)})
        verdicts: list[tuple[Evidence, Verdict]] = [
            (each, self._verdict(each.outcome, p[str(index)]))
            for index, each in enumerate(collected)
        ]
        verdict = self._overall(verdicts)
        decisive = [each for each, own in verdicts if own == verdict] or collected
        reason = "; ".join(_summary(each) for each in decisive)
        others = len(collected) - len(decisive)
        also = f"; {others} more {'does' if others == 1 else 'do'} not say so" if others else ""
        return Finding(verdict, f"{reason}{also}.", evidence=tuple(collected))

    def _at_own_scale(self, collected: Sequence[Evidence]) -> Finding | None:
        finding = self.combine(collected)
        if finding is None:
            return None
        size = max(each.parameters for each in finding.evidence)
        direction = ", and of the direction only" if self.expected == "worse" else ""
        reason = (
            f"Not of {self.scale.setting} but at {self.scale.relative_size(size)}{direction}: "
            f"{finding.reason}"
        )
        return replace(finding, reason=reason)

    def _verdict(self, outcome: ScoreDifference | SolvedCounts, p: float) -> Verdict:
        """The verdict of one comparison, whose p value is adjusted for all of the claim."""
        allowed = self.margin or 0.0
        no_worse = self.expected == "no worse"
        match outcome:
            case ScoreDifference() if no_worse and outcome.largest_loss <= allowed:
                return "supported"
            case ScoreDifference() if no_worse and outcome.smallest_loss <= allowed:
                return "not distinguishable"
            case ScoreDifference() | SolvedCounts() if p < LEVEL:
                lost = outcome.gain < 0
                return "supported" if lost == (self.expected == "worse") else "refuted"
            case _:
                return "not distinguishable"

    def _overall(self, verdicts: Iterable[tuple[Evidence, Verdict]]) -> Verdict:
        """One contradiction refutes; support must come from each task of the claim."""
        by_task: dict[str, set[Verdict]] = {}
        for evidence, verdict in verdicts:
            by_task.setdefault(evidence.task, set()).add(verdict)
        if any("refuted" in each for each in by_task.values()):
            return "refuted"
        if all("supported" in by_task.get(task, ()) for task in self.tasks):
            return "supported"
        return "not distinguishable"

    def _has_recipe(self, recipe: str | None) -> bool:
        """Whether the recipe has runs of both arms at the claim's scale."""
        if recipe is None:
            return False
        study = recipes.find(recipe)
        return {self.arm, self.against} <= set(study.variants) and any(
            self.scale.covers(task, parameters(study.model_of(task)).total)
            for task in self.tasks
            if task in study.seeds
        )


def _summary(evidence: Evidence) -> str:
    return f"{evidence.task} ({evidence.store}, {evidence.steps:,} steps): {evidence.outcome.text}"
