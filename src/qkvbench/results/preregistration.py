"""Hypotheses registered before a study's first run: read from a file, judged by its verdicts."""

import tomllib
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qkvbench.results.pair import pair
from qkvbench.results.record import Expectation, Hypothesis
from qkvbench.results.stats import Comparison, verdicts
from qkvbench.results.view import TaskView, View, with_margin

Outcome = Literal["confirmed", "contradicted", "not decided"]

# The tests of `results.stats` and `results.pair`, by name: a change there is a change here.
MEANS_TEST = (
    "difference of means paired by seed, simultaneous over the arms of the task (the widest of "
    "three intervals); two one-sided tests against the margin, Holm over the arms"
)
SOLVED_TEST = "solved seeds, Boschloo's exact test, Holm over the arms of the task"
PAIR_MEANS_TEST = (
    "difference of means paired by seed, Student's t for this pair, Holm over its tasks; two "
    "one-sided tests against the margin"
)
PAIR_SOLVED_TEST = "solved seeds, Boschloo's exact test for this pair, Holm over its tasks"

# The verdicts that confirm an expectation, and those that contradict it. A loss beyond the margin
# is what "worse" expects, so a verdict that excludes it is a contradiction.
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
# Expectations about the margin: a difference can be significant and yet within it.
ABOUT_MARGIN: frozenset[Expectation] = frozenset({"matches", "not worse"})


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

    ``within_margin`` is True if the difference is shown to be within the margin, whatever the word.
    """

    word: str
    decided: bool
    within_margin: bool = False


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of a hypothesis on one task.

    ``seeds`` counts those that ended for both arms, ``registered_seeds`` those that were planned.
    ``test`` is the name of the test that was used if it is not the one registered, else None.
    """

    task: str
    outcome: Outcome
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
    def outcome(self) -> Outcome:
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


def name_of_test(*, against_baseline: bool, counted: bool) -> str:
    """The name of the test of two arms, one of them the baseline or not, by scores or by counts."""
    if against_baseline:
        return SOLVED_TEST if counted else MEANS_TEST
    return PAIR_SOLVED_TEST if counted else PAIR_MEANS_TEST


def judge_hypotheses(view: View) -> tuple[HypothesisOutcome, ...]:
    """The outcome of each registered hypothesis; empty if nothing was registered."""
    registered = view.preregistered
    if registered is None:
        return ()
    return tuple(
        HypothesisOutcome(each, _task_outcomes(view, each, registered.seeds))
        for each in registered.hypotheses
    )


def outcome(expected: Expectation, shown: Shown) -> Outcome:
    """The outcome of a verdict for an expectation. A likely verdict, or none, decides nothing."""
    if not shown.decided:
        return "not decided"
    if shown.within_margin and expected in ABOUT_MARGIN:
        return "confirmed"
    if shown.word in CONFIRMING[expected]:
        return "confirmed"
    return "contradicted" if shown.word in CONTRADICTING[expected] else "not decided"


def _task_outcomes(
    view: View, hypothesis: Hypothesis, seeds: dict[str, int]
) -> tuple[TaskOutcome, ...]:
    tasks = {
        task.name: with_margin(task, hypothesis.margins[task.name])
        for task in view.tasks
        if task.name in hypothesis.tasks
    }
    shown = _verdicts(view, hypothesis, tasks)
    return tuple(
        TaskOutcome(
            task=name,
            outcome=outcome(hypothesis.expect, shown[name]),
            shown=shown[name],
            seeds=_shared_seeds(tasks.get(name), hypothesis),
            registered_seeds=seeds[name],
            test=_other_test(view, tasks.get(name), hypothesis),
        )
        for name in hypothesis.tasks
    )


def _verdicts(view: View, hypothesis: Hypothesis, tasks: dict[str, TaskView]) -> dict[str, Shown]:
    """The verdict on each task. This function alone reads the statistics."""
    arm, against = hypothesis.arm, hypothesis.against
    found = {name: Shown("no run yet", decided=False) for name in hypothesis.tasks}
    for each in (arm, against):
        if each not in view.arms:
            reason = Shown(f"{each} is not an arm of this study any more", decided=False)
            return dict.fromkeys(found, reason)
    if against != view.baseline:
        for each in pair(replace(view, tasks=tuple(tasks.values())), against, arm).tasks:
            word = each.verdict or each.standing
            within = each.difference is not None and each.difference.matches
            decided = each.verdict is not None
            found[each.task] = Shown(word, decided=decided, within_margin=within)
        return found
    for name, task in tasks.items():
        word = verdicts(task.result, task.metric.better).get(arm)
        if word is None:
            missing = arm in task.result.incomplete
            reason = "seeds are missing or failed" if missing else task.result.standing
            found[name] = Shown(reason, decided=False)
            continue
        result = task.result
        within = isinstance(result, Comparison) and result.differences[arm].matches
        found[name] = Shown(word, decided=True, within_margin=within)
    return found


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


def _other_test(view: View, task: TaskView | None, hypothesis: Hypothesis) -> str | None:
    if task is None:
        return None
    name = name_of_test(
        against_baseline=hypothesis.against == view.baseline,
        counted=task.metric.solved is not None,
    )
    return None if name == hypothesis.tests.get(task.name) else name
