"""The limits of a study, and what is missing or mixed in it, in sentences."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from qkvbench.cost.units import count_text, seconds_text
from qkvbench.reports.parts.formatting import SEPARATOR, Note, machine_text, number, plural
from qkvbench.reports.parts.tuning import rate_notes
from qkvbench.results.across import FLOOR
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView, View


def limits(view: View) -> list[Note]:
    """The limits of the study, and what is missing or mixed in it."""
    return [*_floor(view), *_seeds(view), *_size(view), *_machine(view), *_missing(view)]


def _floor(view: View) -> list[Note]:
    if FLOOR in view.arms or not view.tasks:
        return []
    return [
        Note(
            "No control without attention",
            f"how much of a score needs attention at all is not known; the arm `{FLOOR}` tells.",
        )
    ]


def _seeds(view: View) -> list[Note]:
    if not view.tasks:
        return []
    by_count: dict[int, list[str]] = defaultdict(list)
    for task in view.tasks:
        by_count[len(task.result.seeds)].append(task.label)
    counted = ", ".join(
        f"{count} ({', '.join(names)})" for count, names in sorted(by_count.items())
    )
    return [
        Note(
            "Seeds",
            f"{counted}. Not distinguishable is not equal: a smaller loss may be missed. "
            f"{_over_items(view)}",
        )
    ]


def _over_items(view: View) -> str:
    """Whether the intervals cover the choice of test items."""
    with_items = [task for task in view.tasks if task.items]
    if not with_items:
        return "The intervals cover the seeds, not the choice of test items."
    widest: list[str] = []
    for task in with_items:
        ratios = [
            (each.both[1] - each.both[0]) / length
            for arm, each in task.items.items()
            if (length := _interval_length(task, arm))
        ]
        if ratios:
            widest.append(f"{task.label} at most {number(max(ratios), 1)} times")
    if not widest:
        return "The intervals cover the seeds, not the choice of test items."
    return (
        "The intervals cover the seeds, not the choice of test items; if they covered both they "
        f"would be longer: {', '.join(widest)}."
    )


def _interval_length(task: TaskView, arm: str) -> float:
    result = task.result
    assert isinstance(result, Comparison)
    each = result.differences[arm]
    return (each.high or 0.0) - (each.low or 0.0)


def _size(view: View) -> list[Note]:
    if not view.tasks:
        return []
    sizes = sorted(cost.total_parameters for task in view.tasks for cost in task.costs.values())
    steps = sorted(task.steps for task in view.tasks)
    late = " A seed that did not solve its task might solve it later."
    counted = any(isinstance(task.result, Tally) for task in view.tasks)
    return [
        Note(
            "Small models",
            f"{_range(sizes, count_text)} parameters. Larger models are not tested.",
        ),
        Note(
            "A fixed small budget",
            f"{_range(steps, '{:,}'.format)} steps measure speed of learning more than "
            f"capacity: gaps may close with more steps.{late if counted else ''}",
        ),
        *rate_notes(view),
    ]


def _machine(view: View) -> list[Note]:
    measured = list(view.measurements.values())
    times = sorted(each.decode_p50_s for each in measured if each.decode_p50_s is not None)
    if not times:
        return [Note("Latency and memory", "not measured.")]
    first = measured[0]
    return [
        Note(
            "Latency",
            f"{_range(times, seconds_text)} on one machine ({machine_text(first.machine)}), with "
            "the kernels named above and a small model; elsewhere the order may differ.",
        )
    ]


def _missing(view: View) -> list[Note]:
    notes: list[Note] = []
    partly = [f"`{arm}` ({task.label})" for task in view.tasks for arm in task.result.incomplete]
    if partly:
        text = f"{SEPARATOR.join(partly)}."
        notes.append(Note("Incomplete, so not compared", text))
    if view.waiting:
        notes.append(Note("No run yet", f"{', '.join(view.waiting)}."))
    if len(view.revisions) > 1:
        notes.append(Note("Mixed code revisions", f"{', '.join(view.revisions)}."))
    for name, texts in _mixtures(view).items():
        if len(texts) > 1:
            notes.append(Note(f"Mixed {name}", f"{'; '.join(texts)}."))
    if view.damaged:
        files = ", ".join(each.path.name for each in view.damaged)
        notes.append(Note(f"{plural(len(view.damaged), 'damaged file')} left out", f"{files}."))
    if view.others:
        notes.append(Note(plural(view.others, "other run"), "in this store, not of this study."))
    return notes


def _mixtures(view: View) -> dict[str, list[str]]:
    """The properties that should be the same for all runs, with their different values."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for machine in view.machines:
        values["machines"][machine_text(machine)] = None
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        values["versions"][versions] = None
    for run in view.runs:
        if run.data_identity is not None:
            values[f"data of {run.task}"][run.data_identity[:16]] = None
    return {name: list(texts) for name, texts in values.items()}


def _range(ordered: Sequence[float], text: Callable[[float], str]) -> str:
    """The first and the last of ordered values; only one if their texts are equal."""
    low, high = text(ordered[0]), text(ordered[-1])
    return low if low == high else f"{low} to {high}"
