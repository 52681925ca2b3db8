"""Tests that runs and measurements answer: the expected direction for an arm, at which scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench import recipes, tasks
from qkvbench.claims.kit.claim import Claim, Direction, Finding, OtherScale, Verdict
from qkvbench.claims.kit.evidence import (
    Conditions,
    Evidence,
    Pool,
    ScoreDifference,
    SolvedCounts,
)
from qkvbench.claims.kit.figure import Figure
from qkvbench.claims.kit.measured import MeasuredChange
from qkvbench.cost import parameters
from qkvbench.model import Model
from qkvbench.results.critical import LEVEL, holm
from qkvbench.results.stats import CERTAIN

# Runs are at a source's scale if each of their conditions is at most this many times more or less
# than the source's.
MAX_RATIO = 4

Expected = Literal["worse", "no worse"]

DIRECTIONS: dict[Verdict, Direction] = {
    "supported": "same direction",
    "refuted": "opposite direction",
    "not distinguishable": "no direction seen",
}


@dataclass(frozen=True)
class Scale:
    """The scale of a claim: the source's models, the size of their training, and the setting.

    ``models`` are the smallest and the largest, or the only one; ``tokens`` is the length of the
    longest sequences that count in the source's figure, ``sequences`` their number in training, and
    ``score`` the accuracy of the source's baseline. None, or no model: the source does not say.
    ``requires`` describes the runs that a test at this scale would need. ``tasks`` are those of
    this bench in the same setting; often there is none.
    """

    models: tuple[Model, ...]
    setting: str
    requires: str
    tasks: tuple[str, ...] = ()
    tokens: int | None = None
    sequences: int | None = None
    score: Figure | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Parameters of the models."""
        return tuple(parameters(model).total for model in self.models)

    def covers(self, task: str, runs: Conditions) -> bool:
        """Whether runs of this task under these conditions are at this scale."""
        return bool(self.sizes) and task in self.tasks and not self.distances(runs)

    def distances(self, runs: Conditions) -> tuple[str, ...]:
        """The conditions in which runs are not at this scale, each in words."""
        sizes = self.sizes
        ratios = {
            "parameters": runs.parameters / min(max(runs.parameters, min(sizes)), max(sizes))
            if sizes
            else None,
            "length of a sequence": self.tokens and runs.tokens / self.tokens,
            "sequences in training": self.sequences and runs.sequences / self.sequences,
        }
        far = [f"{_times(ratio)} the {name}" for name, ratio in ratios.items() if _is_far(ratio)]
        if self.score is not None and runs.score is not None and _is_far(self._errors(runs)):
            ceiling = ", a ceiling at which a loss hardly shows" if self.is_ceiling(runs) else ""
            far.append(
                f"a baseline at {runs.score:.4f} where the source's is at {self.score.text}"
                f"{ceiling}"
            )
        return tuple(far)

    def is_ceiling(self, runs: Conditions) -> bool:
        """Whether the runs' baseline makes so few errors that a loss can hardly show."""
        ratio = self._errors(runs)
        return ratio is not None and ratio < 1 / MAX_RATIO

    def _errors(self, runs: Conditions) -> float | None:
        """Errors of the runs' baseline over those of the source's; None if either is unknown."""
        if self.score is None or runs.score is None:
            return None
        return (1 - runs.score) / (1 - self.score.value)


@dataclass(frozen=True)
class Runs:
    """An arm compared with another on some tasks, by the verdicts of all reports.

    At the claim's own scale only a certain verdict decides; elsewhere a likely one is a direction.
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

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """The finding from runs at the claim's scale; without them, whether a recipe has any."""
        finding = self.combine(
            [each for each in self._collected(pool) if self._is_own(each)], level=CERTAIN
        )
        if finding is not None:
            return finding
        if self._has_recipe(claim.recipe):
            return Finding("not yet run", f"`qkvbench run {claim.recipe}` tests it.")
        return Finding("not testable here", claim.arithmetic().text, self.scale.requires)

    def direction(self, pool: Pool) -> OtherScale | None:
        """The direction of runs that are not at the claim's scale.

        At a ceiling hardly any loss shows, so such runs count only if there are no others.
        """
        others = [each for each in self._collected(pool) if not self._is_own(each)]
        below = [each for each in others if not self.scale.is_ceiling(each.conditions)]
        finding = self.combine(below or others, level=LEVEL)
        if finding is None:
            return None
        first = finding.evidence[0].conditions
        far = self.scale.distances(first) or (f"{first.parameters:,} parameters",)
        left = ", ".join(each.summary for each in others if below and each not in below)
        ceiling = f" Not counted, at a ceiling: {left}." if left else ""
        return OtherScale(
            direction=DIRECTIONS[finding.verdict],
            distance=f"Not {self.scale.setting}: {', '.join(far)}",
            result=finding.reason + ceiling,
            evidence=finding.evidence,
        )

    def combine(self, collected: Sequence[Evidence], *, level: float) -> Finding | None:
        """The verdict of all comparisons together; None if there is none."""
        if not collected:
            return None
        # Any of several likely differences would decide, so they share one level. Of intervals
        # there is no level between the likely and the certain one.
        p = {place: each.outcome.p for place, each in enumerate(collected)}
        p = p if level == CERTAIN else holm(p)
        bounds = level if len(collected) == 1 else CERTAIN
        verdicts: list[tuple[Evidence, Verdict]] = [
            (each, self._verdict(each.outcome, p[place], level, bounds))
            for place, each in enumerate(collected)
        ]
        verdict = self._overall(verdicts)
        decisive = [each for each, own in verdicts if own == verdict] or collected
        reason = "; ".join(each.summary for each in decisive)
        others = [each for each in collected if each not in decisive]
        also = ""
        if others:
            largest = max(others, key=lambda each: sum(each.seeds))
            do_not = "does not" if len(others) == 1 else "do not"
            also = f"; {len(others)} more {do_not} say so, the largest: {largest.summary}"
        ordered = (*decisive, *others)
        return Finding(verdict, f"{reason}{also}.", evidence=ordered)

    def _collected(self, pool: Pool) -> list[Evidence]:
        """All comparisons of the two arms on the tasks of the claim."""
        return [
            each
            for task in self.tasks
            for each in pool.comparisons(task, arm=self.arm, against=self.against)
        ]

    def _is_own(self, evidence: Evidence) -> bool:
        """Whether this comparison is at the claim's own scale."""
        return self.scale.covers(evidence.task, evidence.conditions)

    def _verdict(
        self, outcome: ScoreDifference | SolvedCounts, p: float, level: float, bounds: float
    ) -> Verdict:
        """The verdict of one comparison: by its p value at one level, by its interval at another.

        Zero as a margin is what the p value is of.
        """
        allowed = self.margin or 0.0
        no_worse = self.expected == "no worse"
        match outcome:
            case ScoreDifference() if no_worse and outcome.largest_loss_at(bounds) <= allowed:
                return "supported"
            case ScoreDifference() if no_worse and (
                outcome.smallest_loss_at(bounds if allowed else level) <= allowed
            ):
                return "not distinguishable"
            case ScoreDifference() | SolvedCounts() if p < level:
                worse = self.expected == "worse"
                return "supported" if outcome.is_loss == worse else "refuted"
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
        """Whether the recipe has runs of both arms at the claim's scale, whatever their scores."""
        if recipe is None:
            return False
        study = recipes.find(recipe)
        if not {self.arm, self.against} <= set(study.variants):
            return False
        planned = {
            str(run.task): Conditions(
                parameters(run.model).total,
                tasks.find(run.task).tokens,
                run.training.steps * run.training.batch,
                None,
            )
            for run in study.experiments()
            if run.arm == self.against
        }
        return any(self.scale.covers(task, planned[task]) for task in self.tasks if task in planned)


@dataclass(frozen=True)
class Measured:
    """A measured quantity of some arms against the baseline: does it fall, or rise, as claimed?

    ``model`` is the name of the claim's own model, whose measurements alone count; None if the
    claim is about no particular one.

    What `measure` and the benchmarks time here is never at a claim's own scale, so it shows a
    direction only: the same if the whole interval of every arm lies on the claimed side of no
    change, the opposite if that of every arm lies on the other side.
    """

    quantity: str
    arms: tuple[str, ...]
    claimed: Literal["falls", "rises"]
    setting: str
    model: str | None = None

    def finding(self, claim: Claim, pool: Pool) -> None:
        """None: measurements here do not decide a claim."""

    def direction(self, pool: Pool) -> OtherScale | None:
        """The direction of all measured changes of these arms."""
        found = [
            (place, change)
            for place, change in pool.changes(self.quantity, self.arms)
            if self.model in (None, change.model)
        ]
        if not found:
            return None
        sides: list[Direction] = [self._side(change) for _, change in found]
        direction: Direction = sides[0] if len(set(sides)) == 1 else "no direction seen"
        by_setting: dict[str, list[str]] = {}
        for place, change in found:
            setting = f"{change.model}, {change.setting} ({place})"
            by_setting.setdefault(setting, []).append(change.text)
        result = "; ".join(f"{', '.join(texts)}, {each}" for each, texts in by_setting.items())
        return OtherScale(direction, f"Not {self.setting}", f"{self.quantity}, {result}.")

    def _side(self, change: MeasuredChange) -> Direction:
        if change.low is None or change.high is None or change.low <= 0 <= change.high:
            return "no direction seen"
        rises = change.percent > 0
        return "same direction" if rises == (self.claimed == "rises") else "opposite direction"


def _is_far(ratio: float | None) -> bool:
    """Whether a condition is known, and not at the source's scale."""
    return ratio is not None and not 1 / MAX_RATIO <= ratio <= MAX_RATIO


def _times(ratio: float | None) -> str:
    """A ratio to the source's condition, in words."""
    assert ratio is not None
    return f"{ratio:,.0f} times" if ratio > 1 else f"1/{1 / ratio:,.0f} of"
