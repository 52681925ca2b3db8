"""The hypotheses that were registered before the first run, with their outcomes, as sentences."""

from dataclasses import asdict
from typing import Any

from qkvbench.reports.parts.formatting import SEPARATOR, Note, margin_text, plural, share
from qkvbench.results.preregistration import (
    CONFIRMING,
    HypothesisOutcome,
    TaskOutcome,
    judge_hypotheses,
)
from qkvbench.results.record import Hypothesis
from qkvbench.results.view import View


def predictions(view: View) -> list[Note]:
    """The question, each hypothesis with its outcome, and departures from what was registered.

    Empty if nothing was registered.
    """
    registered = view.preregistered
    if registered is None:
        return []
    outcomes = judge_hypotheses(view)
    notes = [
        Note(
            "Question",
            f"{registered.question} Registered on {registered.registered}, before the first run "
            f"(SHA-256 of the file {registered.sha256[:16]}…).",
        )
    ]
    notes += [_hypothesis(view, number, each) for number, each in enumerate(outcomes, 1)]
    notes += _departures(view, outcomes)
    notes.append(
        Note(
            "Everything else in this report is exploratory",
            "it was not predicted, so it suggests hypotheses and confirms none.",
        )
    )
    return notes


def document(view: View) -> dict[str, Any] | None:
    """The registration with its outcomes as JSON values; None if nothing was registered."""
    registered = view.preregistered
    if registered is None:
        return None
    outcomes = [
        {
            **each.hypothesis.model_dump(),
            "outcome": each.outcome,
            "by_task": [_task_document(task) for task in each.tasks],
        }
        for each in judge_hypotheses(view)
    ]
    return {**registered.model_dump(), "hypotheses": outcomes}


def _task_document(found: TaskOutcome) -> dict[str, Any]:
    within = sorted(found.shown.within_margin)
    return {**asdict(found), "shown": {**asdict(found.shown), "within_margin": within}}


def _hypothesis(view: View, number: int, judged: HypothesisOutcome) -> Note:
    hypothesis = judged.hypothesis
    than = "" if hypothesis.expect == "matches" else " than"
    claim = f"`{hypothesis.arm}` {hypothesis.expect}{than} `{hypothesis.against}`"
    tasks = SEPARATOR.join(_task(view, hypothesis, each) for each in judged.tasks)
    several = len(judged.tasks) > 1
    return Note(
        f"Hypothesis {number} {judged.outcome}",
        f"{claim} on {'each of ' if several else ''}{', '.join(hypothesis.tasks)}. Found: {tasks}.",
    )


def _task(view: View, hypothesis: Hypothesis, found: TaskOutcome) -> str:
    """The outcome on one task: ``sort confirmed (worse)``."""
    expect, detail = hypothesis.expect, found.shown.word
    if expect in found.shown.within_margin and detail not in CONFIRMING[expect]:
        detail += ", yet within the margin"
    margin = hypothesis.margins[found.task]
    if margin is not None and expect in ("matches", "not worse"):
        unit = next((task.metric for task in view.tasks if task.name == found.task), None)
        if unit is not None and unit.solved is not None:
            detail += f"; margin {share(margin)} of the seeds"
        elif unit is not None:
            detail += f"; margin {margin_text(margin, unit.unit)}"
    return f"{found.task} {found.outcome} ({detail})"


def _departures(view: View, outcomes: tuple[HypothesisOutcome, ...]) -> list[Note]:
    """The departures of the study from what was registered: seeds, arms and tests."""
    tasks = {each.task: each for judged in outcomes for each in judged.tasks}
    notes: list[Note] = []
    seeds = [
        f"{name}: {plural(each.seeds, 'seed')} instead of {each.registered_seeds}"
        for name, each in tasks.items()
        if each.seeds != each.registered_seeds
    ]
    if seeds:
        notes.append(Note("Not the registered number of seeds", f"{SEPARATOR.join(seeds)}."))
    registered = view.preregistered
    if registered is not None and list(view.arms) != registered.arms:
        arms = SEPARATOR.join(f"`{arm}`" for arm in registered.arms)
        notes.append(Note("Not the registered arms", f"registered were {arms}."))
    tests = {
        (judged.hypothesis.tests.get(each.task, "none"), each.test)
        for judged in outcomes
        for each in judged.tasks
        if each.test is not None
    }
    notes += [
        Note("Not the registered test", f"registered was: {old}; used was: {new}.")
        for old, new in sorted(tests)
    ]
    return notes
