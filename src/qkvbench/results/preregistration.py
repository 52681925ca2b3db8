"""Hypotheses registered before a study's first run: read from a file, judged by its verdicts."""

import tomllib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qkvbench.results.pair import PairTask, pair_on_task
from qkvbench.results.record import Expectation, Hypothesis, MetricInfo
from qkvbench.results.stats import CERTAIN
from qkvbench.results.view import TaskView, View, with_margin

Judgement = Literal["confirmed", "contradicted", "not decided"]

# The tests of `results.stats` by name: a change there is a change here.
MEANS_TEST = (
    f"Welch's t test of the two arms (of proportions on logits), certain at p < {CERTAIN:g}; "
    "two one-sided tests against the margin"
)
SOLVED_TEST = (
    f"log-rank test of the step at which seeds solve the task, certain at p < {CERTAIN:g}; exact "
    "tests of the proportion of solved seeds against the margin"
)

# The verdicts that confirm an expectation, and those that contradict it. A loss beyond the margin
# is what "worse" expects, so a verdict that excludes it is a contradiction. An expectation with a
# margin is contradicted by a difference that is certainly larger than that. That an arm diverged
# more often is counted and not tested, so it decides nothing.
CONFIRMING: dict[Expectation, frozenset[str]] = {
    "worse": frozenset({"worse"}),
    "better": frozenset({"better"}),
    "matches": frozenset({"matches"}),
    "not worse": frozenset({"not worse", "matches", "better"}),
}
CONTRADICTING: dict[Expectation, frozenset[str]] = {
    "worse": frozenset({"better", "matches", "not worse"}),
    "better": frozenset({"worse", "matches"}),
    "matches": frozenset({"worse", "better"}),
    "not worse": frozenset({"worse"}),
}
WITH_MARGIN: frozenset[Expectation] = frozenset({"matches", "not worse"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HypothesisText(_Strict):
    """One ``[[hypothesis]]`` of a file; names are as they were written."""

    arm: str
    against: str | None = None
    task: Annotated[list[str], Field(min_length=1)] | str
    expect: Expectation
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, each once."""
        return [self.task] if isinstance(self.task, str) else list(dict.fromkeys(self.task))


class RegistrationText(_Strict):
    """A file: the question and its hypotheses."""

    question: Annotated[str, Field(min_length=1)]
    hypothesis: Annotated[list[HypothesisText], Field(min_length=1)]


@dataclass(frozen=True)
class Shown:
    """The ``word`` of a verdict if it was ``decided``, else the reason that there is none.

    ``within_margin`` has the expectations about the margin that are shown for certain besides: a
    difference can be significant and yet within the margin. ``is_beyond_margin`` says whether it
    is certainly larger.
    """

    word: str
    decided: bool = True
    within_margin: frozenset[Expectation] = frozenset()
    is_beyond_margin: bool = False


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of a hypothesis on one task.

    ``seeds`` counts those that ended for both arms, ``registered_seeds`` those that were planned.
    ``test`` is the name of the test that was used if it is not the one registered, else None.
    """

    task: str
    outcome: Judgement
    shown: Shown
    seeds: int
    registered_seeds: int
    test: str | None


@dataclass(frozen=True)
class HypothesisOutcome:
    """A hypothesis with its outcome on each task.

    It expects the same on all of its tasks: it is confirmed if it is on all, and contradicted if it
    is on any.
    """

    hypothesis: Hypothesis
    tasks: tuple[TaskOutcome, ...]

    @property
    def outcome(self) -> Judgement:
        """The outcome over all tasks."""
        found = {each.outcome for each in self.tasks}
        if "contradicted" in found:
            return "contradicted"
        return "confirmed" if found == {"confirmed"} else "not decided"


def parse_registration(content: bytes) -> RegistrationText:
    """The question and hypotheses of a TOML file; ValueError with the reason if it has none."""
    try:
        return RegistrationText.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Fields are counted from 0, hypotheses from 1.
        place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        raise ValueError(f"at {place or 'the whole'}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not TOML: {error}") from None


def name_of_test(metric: MetricInfo) -> str:
    """The name of the test of two arms, by their scores or by the steps at which they solve."""
    return MEANS_TEST if metric.solved is None else SOLVED_TEST


def judge_hypotheses(view: View) -> tuple[HypothesisOutcome, ...]:
    """The outcome of each registered hypothesis; empty if nothing was registered."""
    registered = view.preregistered
    if registered is None:
        return ()
    return tuple(
        HypothesisOutcome(each, _task_outcomes(view, each, registered.seeds))
        for each in registered.hypotheses
    )


def outcome(expected: Expectation, shown: Shown) -> Judgement:
    """The outcome of a verdict for an expectation. A likely verdict, or none, decides nothing."""
    if not shown.decided:
        return "not decided"
    if shown.word in CONFIRMING[expected] or expected in shown.within_margin:
        return "confirmed"
    contradicted = shown.word in CONTRADICTING[expected] and (
        expected not in WITH_MARGIN or shown.is_beyond_margin
    )
    return "contradicted" if contradicted else "not decided"


def _task_outcomes(
    view: View, hypothesis: Hypothesis, seeds: dict[str, int]
) -> tuple[TaskOutcome, ...]:
    tasks = {
        task.name: with_margin(task, hypothesis.margins[task.name])
        for task in view.tasks
        if task.name in hypothesis.tasks
    }
    found = {name: _shown(view, hypothesis, tasks.get(name)) for name in hypothesis.tasks}
    return tuple(
        TaskOutcome(
            task=name,
            outcome=outcome(hypothesis.expect, shown),
            shown=shown,
            seeds=_shared_seeds(tasks.get(name), hypothesis),
            registered_seeds=seeds[name],
            test=_other_test(tasks.get(name), hypothesis),
        )
        for name, shown in found.items()
    )


def _shown(view: View, hypothesis: Hypothesis, task: TaskView | None) -> Shown:
    """The verdict on a task at the registered margin. This function alone reads the statistics."""
    arms = (hypothesis.against, hypothesis.arm)
    if absent := [arm for arm in arms if arm not in view.arms]:
        return Shown(f"{absent[0]} is not an arm of this study any more", decided=False)
    if task is None:
        return Shown("no run yet", decided=False)
    if set(arms) & set(task.result.incomplete):
        return Shown("seeds are missing or failed", decided=False)
    pair = pair_on_task(task, *arms)
    if pair.verdict is None:
        return Shown(pair.standing, decided=False)
    if pair.verdict == "diverged":
        return Shown(pair.verdict, decided=False)
    tested = pair.difference or pair.second.count
    levels: dict[Expectation, float | None] = {
        "matches": tested and tested.match_p,
        "not worse": tested and tested.not_worse_p,
    }
    # Of solved seeds the margin is a share, and a certain verdict is on when they solve the task.
    certain = pair.difference is None and pair.verdict in ("worse", "better")
    within: frozenset[Expectation] = frozenset(
        name for name, p in levels.items() if p is not None and p < CERTAIN and not certain
    )
    return Shown(pair.verdict, within_margin=within, is_beyond_margin=_is_beyond(pair))


def _is_beyond(pair: PairTask) -> bool:
    """Whether the difference is certainly larger than the margin.

    Of counts the margin is a share of seeds, and what is compared is when they solve the task: a
    verdict on that is beyond any share.
    """
    if pair.difference is None:
        return True
    low, high = pair.difference.certain or (pair.difference.value,) * 2
    margin = pair.margin or 0.0
    return low > margin or high < -margin


def _shared_seeds(task: TaskView | None, hypothesis: Hypothesis) -> int:
    """The number of seeds that ended for both arms."""
    if task is None:
        return 0
    ended = [
        {run.seed for run in cell.runs if run.status != "interrupted"}
        for cell in task.cells
        if cell.variant in (hypothesis.arm, hypothesis.against)
    ]
    return len(set[int].intersection(*ended)) if len(ended) == 2 else 0


def _other_test(task: TaskView | None, hypothesis: Hypothesis) -> str | None:
    if task is None:
        return None
    name = name_of_test(task.metric)
    return None if name == hypothesis.tests.get(task.name) else name
