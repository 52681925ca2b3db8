"""What a study shows and what it cannot tell, in plain words made from its statistics."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports._text import (
    LISTED,
    arms_text,
    bounds,
    change,
    decimals,
    machine_text,
    metric_text,
    number,
    p_text,
    plural,
    seeds_text,
    share,
    signed,
    telling,
)
from qkvbench.results.stats import LEVEL, POWER, Comparison, Difference, Tally
from qkvbench.results.view import SameFunction, TaskView, View


@dataclass(frozen=True)
class Note:
    """Some sentences and what they are about. Equations stand between backquotes."""

    topic: str
    text: str


def findings(view: View) -> list[Note]:
    """What the study shows: the answer over all tasks, each task, what is saved, the null."""
    return [*_overall(view), *(_task(task) for task in view.tasks), *_saved(view), *_nulls(view)]


def limits(view: View) -> list[Note]:
    """What the study cannot tell, and what is wrong with it."""
    return [*_seeds(view), *_size(view), *_machine(view), *_missing(view)]


def _signs(task: TaskView) -> dict[str, int]:
    """For each arm that is compared: −1 clearly worse, 1 clearly better, 0 not distinguishable."""
    if task.result.standing != "compared":
        return {}
    match task.result:
        case Comparison(differences=differences):
            good = 1 if task.metric.better == "higher" else -1
            return {
                arm: 0 if not each.clear else good if each.value > 0 else -good
                for arm, each in differences.items()
            }
        case Tally(counts=counts, baseline=baseline):
            base = counts[baseline].solved
            return {
                arm: 0 if each.p >= LEVEL else 1 if each.solved > base else -1
                for arm, each in counts.items()
                if each.p is not None
            }


def _overall(view: View) -> list[Note]:
    signs = {task.name: _signs(task) for task in view.tasks if _signs(task)}
    if not signs:
        return [Note("No comparison", "no task compares its arms, so nothing is shown.")]
    whole = [arm for arm in view.arms[1:] if all(arm in each for each in signs.values())]
    lost = {arm: [name for name, each in signs.items() if each.get(arm) == -1] for arm in view.arms}
    unharmed = [arm for arm in whole if not lost[arm]]
    harmed = [f"`{arm}` ({', '.join(names)})" for arm, names in lost.items() if names]
    partly = [arm for arm in view.arms[1:] if arm not in whole and not lost[arm]]
    several = f"any of the {len(signs)} tasks that compare"
    tasks = several if len(signs) > 1 else "the one task that compares"
    base = f"`{view.baseline}`"
    notes = [
        Note(
            f"Not clearly worse than {base} on {tasks}",
            f"{arms_text(unharmed) or 'none'}.",
        )
    ]
    if harmed:
        notes.append(Note("Clearly worse on at least one", f"{LISTED.join(harmed)}."))
    if partly:
        notes.append(Note("Not judged on all, as seeds are missing", f"{arms_text(partly)}."))
    return notes


def _task(task: TaskView) -> Note:
    metric = metric_text(task.metric)
    match task.result:
        case Comparison() as result:
            text = f"{metric}, {seeds_text(result)}. {_compared(task, result)}"
        case Tally() as result:
            threshold = number(task.metric.solved or 0, 2)
            text = f"solved from {metric} {threshold}, {seeds_text(result)}. {_counted(result)}"
    return Note(task.name, text)


def _compared(task: TaskView, result: Comparison) -> str:
    places = decimals(task)
    base = f"`{result.baseline}`"
    match result.standing:
        case "baseline did not learn":
            score = result.means[result.baseline]
            return (
                f"The baseline did not learn: {base} scores {number(score.value, places)}, which "
                f"does not clearly beat chance ({number(task.metric.chance, places)}); nothing "
                "is compared."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared."
        case "one arm":
            return f"Only {base} is complete, so nothing is compared."
        case "one seed":
            return "One seed shows no spread: the differences have no interval and prove nothing."
        case "no spread":
            apart = [arm for arm, each in result.differences.items() if each.value != 0]
            told = f" The means of {arms_text(apart)} differ from its mean." if apart else ""
            return f"Every arm keeps its distance to {base} on all seeds: no interval.{told}"
        case "compared":
            parts = [
                _clearly(task, result, sign, places)
                for sign in (-1, 1)
                if sign in _signs(task).values()
            ]
            alike = [arm for arm, sign in _signs(task).items() if sign == 0]
            if alike:
                parts.append(f"Not distinguishable from {base}: {arms_text(alike)}.")
            parts.append(
                f"Smallest detectable difference ({share(POWER)} power): "
                f"{number(result.detectable or 0, places)}."
            )
            if result.uneven is not None:
                parts.append(
                    f"`{result.uneven}` varies clearly more over the seeds than the others, so its "
                    "interval is too narrow and theirs are too wide."
                )
            return " ".join(parts)


def _clearly(task: TaskView, result: Comparison, sign: int, places: int) -> str:
    """The arms on one side of the baseline, each with how far, and between which bounds."""
    higher = (sign > 0) == (task.metric.better == "higher")
    arms = [arm for arm, each in _signs(task).items() if each == sign]
    far = [f"`{arm}` {_how_far(result.differences[arm], places)}" for arm in arms]
    return (
        f"{'Better' if sign > 0 else 'Worse'} than `{result.baseline}`, "
        f"{'higher' if higher else 'lower'} by: {LISTED.join(far)}."
    )


def _how_far(difference: Difference, places: int) -> str:
    places = telling(difference, places)
    low, high = sorted((abs(difference.low or 0), abs(difference.high or 0)))
    return (
        f"{number(abs(difference.value), places)} ({number(low, places)} to {number(high, places)})"
    )


def _counted(result: Tally) -> str:
    base = f"`{result.baseline}`"
    whole = {arm: each for arm, each in result.counts.items() if arm not in result.incomplete}
    solved = LISTED.join(f"`{arm}` {each.solved} of {each.seeds}" for arm, each in whole.items())
    match result.standing:
        case "baseline did not learn":
            count = result.counts[result.baseline]
            return (
                f"The baseline did not learn: {base} solves {count.solved} of {count.seeds}, not "
                f"more than half; nothing is compared. Solved: {solved}."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared. Solved: {solved}."
        case "one seed" | "one arm" | "no spread":
            return f"{solved}; too little to compare."
        case "compared":
            count = result.counts[result.baseline]
            told = [arm for arm, each in whole.items() if each.p is not None and each.p < LEVEL]
            parts = [f"Solved by {solved}."]
            if told:
                each = LISTED.join(f"`{arm}` ({p_text(whole[arm].p or 0)})" for arm in told)
                parts.append(f"Clearly different from {base}: {each}.")
            if len(told) < len(whole) - 1:
                others = "The others are not" if told else "None of the others is"
                parts.append(f"{others} distinguishable from it: {_tellable(result)}.")
            return " ".join(parts)


def _tellable(result: Tally) -> str:
    count = result.counts[result.baseline]
    complete = len(result.counts) - len(result.incomplete)
    arms = f"{plural(count.seeds, 'seed')} and {plural(complete - 1, 'arm')}"
    if result.lowest is None:
        return f"with {arms} no single count could be told from {count.solved}"
    most = "none" if result.lowest == 0 else f"at most {result.lowest}"
    return f"with {arms} a single arm could be told from it if it solved {most}"


def _saved(view: View) -> list[Note]:
    costs = view.costs
    base = costs.get(view.baseline)
    if base is None or len(costs) < 2:
        return []
    parameters = [
        f"`{arm}` {change(cost.total_parameters, base.total_parameters)}"
        for arm, cost in costs.items()
        if arm != view.baseline
    ]
    notes = [
        Note(
            f"Parameters (model of {view.cost_task})",
            f"{base.total_parameters:,} with `{view.baseline}`; {LISTED.join(parameters)}.",
        )
    ]
    whole = base.cache_bytes_per_token
    if whole is not None:
        kept: dict[int, list[str]] = defaultdict(list)
        for arm, cost in costs.items():
            if arm != view.baseline and cost.cache_bytes_per_token is not None:
                kept[cost.cache_bytes_per_token].append(arm)
        groups = [
            f"{share(size / whole)} with {arms_text(arms)}"
            for size, arms in sorted(kept.items(), reverse=True)
        ]
        text = f"{bytes_text(whole)} with `{view.baseline}`; of that, {'; '.join(groups)}."
        notes.append(Note("Cache per token", text))
    return notes


def _nulls(view: View) -> list[Note]:
    pairs: dict[tuple[str, str], list[tuple[TaskView, SameFunction]]] = defaultdict(list)
    for task in view.tasks:
        for same in task.same:
            pairs[same.first, same.second].append((task, same))
    return [Note("Built-in null", _null(*pair, each)) for pair, each in pairs.items()]


def _null(first: str, second: str, outcomes: Sequence[tuple[TaskView, SameFunction]]) -> str:
    head = f"`{first}` and `{second}` can represent the same functions"
    tested = [
        (task, same.difference)
        for task, same in outcomes
        if same.difference is not None and same.difference.low is not None
    ]
    if not tested:
        return f"{head}; no task tests them against each other."
    apart = [
        f"{task.name} {signed(each.value, decimals(task))} {bounds(each, decimals(task))}"
        for task, each in tested
        if each.clear
    ]
    if not apart:
        names = ", ".join(task.name for task, _ in tested)
        return f"{head}, and the study does not tell them apart ({names}), as it should be."
    return (
        f"{head}, yet they differ (the second minus the first): {'; '.join(apart)}. That is the "
        "path of the optimizer or a bug, and other differences of this size may be the same."
    )


def _seeds(view: View) -> list[Note]:
    if not view.tasks:
        return []
    by_count: dict[int, list[str]] = defaultdict(list)
    for task in view.tasks:
        by_count[len(task.result.seeds)].append(task.name)
    counted = ", ".join(
        f"{count} ({', '.join(names)})" for count, names in sorted(by_count.items())
    )
    notes = [
        Note(
            "Few seeds",
            f"{counted}. Not distinguishable is not equal: a loss below the smallest detectable "
            "difference can hide. The intervals cover the seeds, not the choice of test items.",
        )
    ]
    if len(view.tasks) > 1:
        notes.append(
            Note(
                "Many tasks",
                "the intervals hold together for the arms of one task, not for all "
                f"{len(view.tasks)} tasks at once: of many tasks, one may mislead.",
            )
        )
    return notes


def _size(view: View) -> list[Note]:
    if not view.tasks:
        return []
    sizes = sorted(cost.total_parameters for task in view.tasks for cost in task.costs.values())
    steps = sorted(task.steps for task in view.tasks)
    late = " A seed that did not solve its task may only be late."
    counted = any(isinstance(task.result, Tally) for task in view.tasks)
    return [
        Note(
            "Small models",
            f"{_range(sizes, count_text)} parameters. What larger ones lose or gain is not tested.",
        ),
        Note(
            "A fixed small budget",
            f"{_range(steps, '{:,}'.format)} steps measure speed of learning more than "
            f"capacity: gaps may close with more steps.{late if counted else ''}",
        ),
        Note(
            "One setting",
            "the arms of a task share learning rate and initial scales; with its own, an arm could "
            "do better.",
        ),
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
    partly = [f"`{arm}` ({task.name})" for task in view.tasks for arm in task.result.incomplete]
    if partly:
        text = f"{LISTED.join(partly)}."
        notes.append(Note("Only partly complete, so compared with nothing there", text))
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
    """What should be the same for all runs, and the different values it has."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for machine in view.machines:
        found["machines"][machine_text(machine)] = None
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        found["versions"][versions] = None
    for run in view.runs:
        if run.data_identity is not None:
            found[f"data of {run.task}"][run.data_identity[:16]] = None
    return {name: list(texts) for name, texts in found.items()}


def _range(ordered: Sequence[float], text: Callable[[float], str]) -> str:
    """The first and the last of ordered values; one of them where they read alike."""
    low, high = text(ordered[0]), text(ordered[-1])
    return low if low == high else f"{low} to {high}"
