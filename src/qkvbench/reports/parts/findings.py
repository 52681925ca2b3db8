"""The findings of a study, as sentences made from its statistics."""

from collections import defaultdict
from collections.abc import Sequence

from qkvbench.cost.units import bytes_text
from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    Note,
    arms_text,
    bound_places,
    bounds,
    change,
    decimals,
    margin_text,
    metric_text,
    number,
    p_text,
    plural,
    seeds_text,
    share,
    signed,
)
from qkvbench.results.averages import Average
from qkvbench.results.critical import holm
from qkvbench.results.dominance import ParetoStatus
from qkvbench.results.stats import (
    LEVEL,
    POWER,
    Comparison,
    Difference,
    Tally,
    Verdict,
    verdicts,
)
from qkvbench.results.view import SameFunction, TaskView, View

# The verdicts that exclude a loss beyond the margin.
NO_LOSS: tuple[Verdict, ...] = ("better", "matches")

# Dominated: a rival that costs no more is better. On the frontier: all such rivals are worse.
PARETO_TEXT: dict[ParetoStatus, str] = {
    "on the frontier": "on the frontier",
    "dominated": "dominated for certain",
    "likely dominated": "likely dominated",
    "not decided": "not decided",
}


def findings(view: View) -> list[Note]:
    """The verdicts over all tasks, each task, averages, savings, the Pareto fronts, the nulls."""
    return [
        *_overall(view),
        *(_task(task) for task in view.tasks),
        *(_average(view, each) for each in view.averages),
        *_over_tasks(view),
        *_savings(view),
        *_pareto(view),
        *_nulls(view),
    ]


def _overall(view: View) -> list[Note]:
    by_task = {task.name: each for task in view.tasks if (each := _verdicts(task))}
    if not by_task:
        return [Note("No comparison", "no task has comparable arms.")]
    others = view.arms[1:]
    complete = [arm for arm in others if all(arm in each for each in by_task.values())]
    losses = {
        arm: [name for name, each in by_task.items() if each.get(arm) == "worse"] for arm in others
    }
    matching = [arm for arm in complete if all(each[arm] in NO_LOSS for each in by_task.values())]
    undecided = [arm for arm in complete if not losses[arm] and arm not in matching]
    worse = [f"`{arm}` ({', '.join(names)})" for arm, names in losses.items() if names]
    incomplete = [arm for arm in others if arm not in complete and not losses[arm]]
    tasks = f"all {len(by_task)} compared tasks" if len(by_task) > 1 else "the one compared task"
    base = f"`{view.baseline}`"
    notes = [
        Note(f"Shown to match or to beat {base} on {tasks}", f"{arms_text(matching) or 'no arm'}.")
    ]
    if undecided:
        text = f"{arms_text(undecided)}. This is not the same as equal."
        notes.append(Note("Neither shown to match on all nor to be worse on any", text))
    if worse:
        notes.append(Note("Clearly worse on at least one", f"{SEPARATOR.join(worse)}."))
    if incomplete:
        notes.append(Note("Incomplete, because seeds are missing", f"{arms_text(incomplete)}."))
    return notes


def _verdicts(task: TaskView) -> dict[str, Verdict]:
    return verdicts(task.result, task.metric.better)


def _task(task: TaskView) -> Note:
    metric = metric_text(task.metric)
    match task.result:
        case Comparison() as result:
            text = f"{metric}, {seeds_text(result)}. {_comparison_text(task, result)}"
        case Tally() as result:
            threshold = number(task.metric.solved or 0, 2)
            text = f"solved from {metric} {threshold}, {seeds_text(result)}. {_tally_text(result)}"
    return Note(task.name, text)


def _comparison_text(task: TaskView, result: Comparison) -> str:
    places = decimals(task.result)
    base = f"`{result.baseline}`"
    match result.standing:
        case "baseline did not learn":
            score = result.means[result.baseline]
            return (
                f"The baseline did not learn: {base} scores {number(score.value, places)}, which "
                f"does not clearly beat chance ({number(task.metric.chance, places)}); nothing "
                "is compared."
            )
        case "attention not needed":
            return (
                "Attention is hardly needed: over a model without it "
                f"{base} gains {number(result.worth or 0, places)}, less than twice the smallest "
                f"detectable difference ({number(result.detectable or 0, places)}); this task says "
                "nothing of variants."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared."
        case "one arm":
            return f"Only {base} is complete, so nothing is compared."
        case "one seed":
            return "One seed shows no spread: the differences have no interval and prove nothing."
        case "no spread":
            different = [arm for arm, each in result.differences.items() if each.value != 0]
            means = f" The means of {arms_text(different)} differ from its mean."
            text = f"The differences to {base} are the same on all seeds: no interval."
            return text + (means if different else "")
        case "compared":
            by_arm = _verdicts(task)
            parts = [
                _significant(task, result, verdict, places)
                for verdict in ("worse", "better")
                if verdict in by_arm.values()
            ]
            parts += _equivalences(task, result, by_arm)
            inconclusive = [arm for arm, each in by_arm.items() if each == "not distinguishable"]
            if inconclusive:
                parts.append(f"Not distinguishable from {base}: {arms_text(inconclusive)}.")
            parts.append(
                f"Smallest detectable difference ({share(POWER)} power): "
                f"{number(result.detectable or 0, places)}{_provable(task, result, places)}."
            )
            return " ".join(parts)


def _equivalences(task: TaskView, result: Comparison, by_arm: dict[str, Verdict]) -> list[str]:
    """The arms for which equivalence or non-inferiority is shown, in sentences."""
    if result.margin is None:
        return []
    within = margin_text(result.margin, task.metric.unit)
    matching = [arm for arm, each in by_arm.items() if each == "matches"]
    not_worse = [arm for arm, each in by_arm.items() if each == "not worse"]
    small = [arm for arm, each in result.differences.items() if each.clear and each.matches]
    sentences: list[str] = []
    if matching:
        sentences.append(f"Match `{result.baseline}` within {within}: {arms_text(matching)}.")
    if not_worse:
        sentences.append(f"Not worse by {within} (better is not excluded): {arms_text(not_worse)}.")
    if small:
        sentences.append(f"Different, yet within {within}: {arms_text(small)}.")
    return sentences


def _provable(task: TaskView, result: Comparison, places: int) -> str:
    """The provable margin, if it is larger than the margin."""
    if result.margin is None:
        return f"; there is no margin for {task.metric.unit}, so no arm can match"
    if result.provable is None:
        return ""
    if result.provable <= result.margin:
        return ""
    return (
        f"; an equal arm could be shown to match within {number(result.provable, places)}, not "
        f"within {margin_text(result.margin, task.metric.unit)}"
    )


def _significant(task: TaskView, result: Comparison, verdict: Verdict, places: int) -> str:
    """The arms with this verdict, each with its difference and bounds."""
    higher = (verdict == "better") == (task.metric.better == "higher")
    arms = [arm for arm, each in _verdicts(task).items() if each == verdict]
    sizes = [f"`{arm}` {_size_text(result.differences[arm], places)}" for arm in arms]
    return (
        f"{verdict.capitalize()} than `{result.baseline}`, "
        f"{'higher' if higher else 'lower'} by: {SEPARATOR.join(sizes)}."
    )


def _size_text(difference: Difference, places: int) -> str:
    ends = sorted((abs(difference.low or 0), abs(difference.high or 0)))
    low, high = (number(end, bound_places(end, difference, places)) for end in ends)
    return f"{number(abs(difference.value), places)} ({low} to {high})"


def _tally_text(result: Tally) -> str:
    base = f"`{result.baseline}`"
    counts = {arm: each for arm, each in result.counts.items() if arm not in result.incomplete}
    solved = SEPARATOR.join(
        f"`{arm}` {each.solved} of {each.seeds}" for arm, each in counts.items()
    )
    match result.standing:
        case "baseline did not learn":
            count = result.counts[result.baseline]
            return (
                f"The baseline did not learn: {base} solves {count.solved} of {count.seeds}, not "
                f"more than half; nothing is compared. Solved: {solved}."
            )
        case "attention not needed":
            return (
                "A model without attention does not solve significantly fewer seeds than "
                f"{base}; this task says nothing of variants. Solved: {solved}."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared. Solved: {solved}."
        case "one seed" | "one arm" | "no spread":
            return f"{solved}; too little to compare."
        case "compared":
            different = [
                arm for arm, each in counts.items() if each.p is not None and each.p < LEVEL
            ]
            matching = [arm for arm in counts if result.verdict(arm) == "matches"]
            not_worse = [arm for arm in counts if result.verdict(arm) == "not worse"]
            within = f"{share(result.margin or 0)} of the seeds"
            parts = [f"Solved by {solved}."]
            if matching:
                parts.append(f"Match {base} within {within}: {arms_text(matching)}.")
            if not_worse:
                not_by = f"Not worse by {within} (better is not excluded)"
                parts.append(f"{not_by}: {arms_text(not_worse)}.")
            if different:
                each = SEPARATOR.join(
                    f"`{arm}` ({p_text(counts[arm].p or 0)})" for arm in different
                )
                parts.append(f"Clearly different from {base}: {each}.")
            decided = [*different, *matching, *not_worse]
            if len(decided) < len(counts) - 1:
                others = "The others are not" if decided else "None of the others is"
                parts.append(f"{others} distinguishable from it: {_detectable_count(result)}.")
            return " ".join(parts)


def _detectable_count(result: Tally) -> str:
    count = result.counts[result.baseline]
    complete = len(result.counts) - len(result.incomplete)
    arms = f"{plural(count.seeds, 'seed')} and {plural(complete - 1, 'arm')}"
    if result.lowest is None:
        return f"with {arms} no count would differ significantly from {count.solved}"
    most = "none" if result.lowest == 0 else f"at most {result.lowest}"
    return f"with {arms} a single arm would differ significantly if it solved {most}"


def _average(view: View, average: Average) -> Note:
    """The mean over a benchmark's tasks, each arm compared with the baseline."""
    result = average.result
    places = decimals(result)
    arms: list[str] = []
    for arm in view.arms:
        score, difference = result.means.get(arm), result.differences.get(arm)
        if score is None:
            continue
        text = f"`{arm}` {number(score.value, places)}"
        if difference is not None:
            text += f", {signed(difference.value, places)} {bounds(difference, places)}"
            verdict = difference.verdict(average.metric.better)
            text += f" {verdict}" if difference.clear or difference.matches else ""
        arms.append(f"{text.rstrip()}{' (incomplete)' if arm in result.incomplete else ''}")
    left_out = f"; left out, since they say nothing of variants: {', '.join(average.left_out)}"
    return Note(
        f"{average.benchmark} average",
        f"the plain mean over {', '.join(average.tasks)} ({seeds_text(result)}; chance "
        f"{number(average.metric.chance, places)}{left_out if average.left_out else ''}), and the "
        f"difference to `{result.baseline}` paired by seed: {SEPARATOR.join(arms)}. It is this "
        "project's own figure, not the score of a benchmark of that name.",
    )


def _over_tasks(view: View) -> list[Note]:
    if not view.aggregates:
        return []
    tasks = len(next(iter(view.aggregates.values())).tasks)
    arms = SEPARATOR.join(
        f"`{arm}` {_percent(each.mean)} ({_percent(each.low)} to {_percent(each.high)}), worst "
        f"{_percent(each.worst)} on {each.worst_task}"
        for arm, each in view.aggregates.items()
    )
    return [
        Note(
            f"Over {tasks} tasks",
            f"mean on a scale where 0 is no attention and 100 is `{view.baseline}` (95% for each "
            f"arm alone): {arms}.",
        )
    ]


def _percent(value: float) -> str:
    return number(100 * value, 0)


def _pareto(view: View) -> list[Note]:
    """The Pareto status of the arms on the task whose model the cost columns describe."""
    task = next((task for task in view.tasks if task.name == view.cost_task), None)
    if task is None:
        return []
    notes: list[Note] = []
    for front in task.fronts:
        groups: dict[str, list[str]] = defaultdict(list)
        for arm in view.arms:
            place = front.places.get(arm)
            if place is not None:
                by = f" (by `{place.by}`)" if "dominated" in place.outlook else ""
                groups[place.outlook].append(f"`{arm}`{by}")
        parts = [
            f"{word}: {SEPARATOR.join(groups[outlook])}"
            for outlook, word in PARETO_TEXT.items()
            if outlook in groups
        ]
        notes.append(Note(f"Quality on {task.name} against {front.cost}", f"{'; '.join(parts)}."))
    return notes


def _savings(view: View) -> list[Note]:
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
            f"{base.total_parameters:,} with `{view.baseline}`; {SEPARATOR.join(parameters)}.",
        )
    ]
    base_bytes = base.cache_bytes_per_token
    if base_bytes is not None:
        by_size: dict[int, list[str]] = defaultdict(list)
        for arm, cost in costs.items():
            if arm != view.baseline and cost.cache_bytes_per_token is not None:
                by_size[cost.cache_bytes_per_token].append(arm)
        groups = [
            f"{share(size / base_bytes)} with {arms_text(arms)}"
            for size, arms in sorted(by_size.items(), reverse=True)
        ]
        text = f"{bytes_text(base_bytes)} with `{view.baseline}`; of that, {'; '.join(groups)}."
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
        return f"{head}; no task compares them."
    # The same hypothesis on several tasks is one family.
    adjusted = holm({task.name: 1.0 if each.p is None else each.p for task, each in tested})
    different = [
        f"{task.name} {signed(each.value, places)} {bounds(each, places)}"
        for task, each in tested
        if adjusted[task.name] < LEVEL
        for places in [decimals(task.result)]
    ]
    if not different:
        names = ", ".join(task.name for task, _ in tested)
        return f"{head}, and the study finds no difference ({names}), as it should be."
    return (
        f"{head}, yet they differ (the second minus the first): {'; '.join(different)}. The cause "
        "is optimization or a bug, and other differences of this size may have the same cause."
    )
