"""What a study shows, in plain words made from its statistics."""

from collections import defaultdict
from collections.abc import Sequence

from qkvbench.cost.units import bytes_text
from qkvbench.reports.parts.formatting import (
    LISTED,
    Note,
    arms_text,
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
    telling,
)
from qkvbench.results.aggregate import Aggregate
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

# No loss beyond the margin is possible with these.
SHOWN_AS_GOOD: tuple[Verdict, ...] = ("better", "matches")


# A rival that costs no more is better (dominated), or all such rivals are worse (the frontier).
PARETO_TEXT: dict[ParetoStatus, str] = {
    "on the frontier": "on the frontier",
    "dominated": "dominated for certain",
    "likely dominated": "likely dominated",
    "not decided": "not decided",
}


def findings(view: View) -> list[Note]:
    """What the study shows: the answer over all tasks, each task, what is saved, the null."""
    return [
        *_overall(view),
        *(_task(task) for task in view.tasks),
        *(_average(view, each) for each in view.averages),
        *_across(view),
        *_saved(view),
        *_fronts(view),
        *_nulls(view),
    ]


def _overall(view: View) -> list[Note]:
    told = {task.name: each for task in view.tasks if (each := _verdicts(task))}
    if not told:
        return [Note("No comparison", "no task compares its arms, so nothing is shown.")]
    others = view.arms[1:]
    whole = [arm for arm in others if all(arm in each for each in told.values())]
    lost = {
        arm: [name for name, each in told.items() if each.get(arm) == "worse"] for arm in others
    }
    matching = [arm for arm in whole if all(each[arm] in SHOWN_AS_GOOD for each in told.values())]
    open_ = [arm for arm in whole if not lost[arm] and arm not in matching]
    harmed = [f"`{arm}` ({', '.join(names)})" for arm, names in lost.items() if names]
    partly = [arm for arm in others if arm not in whole and not lost[arm]]
    tasks = f"all {len(told)} tasks that compare" if len(told) > 1 else "the one task that compares"
    base = f"`{view.baseline}`"
    notes = [
        Note(f"Shown to match {base} or to beat it on {tasks}", f"{arms_text(matching) or 'none'}.")
    ]
    if open_:
        text = f"{arms_text(open_)}. This is not the same as equal."
        notes.append(Note("Neither shown to match on all nor to be worse on any", text))
    if harmed:
        notes.append(Note("Clearly worse on at least one", f"{LISTED.join(harmed)}."))
    if partly:
        notes.append(Note("Not judged on all, as seeds are missing", f"{arms_text(partly)}."))
    return notes


def _verdicts(task: TaskView) -> dict[str, Verdict]:
    return verdicts(task.result, task.metric.better)


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
            verdicts_of = _verdicts(task)
            parts = [
                _clearly(task, result, verdict, places)
                for verdict in ("worse", "better")
                if verdict in verdicts_of.values()
            ]
            parts += _shown(task, result, verdicts_of)
            alike = [arm for arm, each in verdicts_of.items() if each == "not distinguishable"]
            if alike:
                parts.append(f"Not distinguishable from {base}: {arms_text(alike)}.")
            parts.append(
                f"Smallest detectable difference ({share(POWER)} power): "
                f"{number(result.detectable or 0, places)}{_to_match(task, result, places)}."
            )
            return " ".join(parts)


def _shown(task: TaskView, result: Comparison, told: dict[str, Verdict]) -> list[str]:
    """The arms of which equivalence or non-inferiority is shown, in sentences."""
    if result.margin is None:
        return []
    within = margin_text(result.margin, task.metric.unit)
    both = [arm for arm, each in told.items() if each == "matches"]
    one = [arm for arm, each in told.items() if each == "not worse"]
    small = [arm for arm, each in result.differences.items() if each.clear and each.matches]
    sentences: list[str] = []
    if both:
        sentences.append(f"Match `{result.baseline}` within {within}: {arms_text(both)}.")
    if one:
        sentences.append(f"Not worse by {within} (better is not excluded): {arms_text(one)}.")
    if small:
        sentences.append(f"Different, yet within {within}: {arms_text(small)}.")
    return sentences


def _to_match(task: TaskView, result: Comparison, places: int) -> str:
    """How near the study is to being able to show a match."""
    if result.margin is None:
        return f"; no margin is stated for {task.metric.unit}, so no arm can match"
    if result.provable is None:
        return ""
    if result.provable <= result.margin:
        return ""
    return (
        f"; an equal arm could be shown to match within {number(result.provable, places)}, not "
        f"within {margin_text(result.margin, task.metric.unit)}"
    )


def _clearly(task: TaskView, result: Comparison, verdict: Verdict, places: int) -> str:
    """The arms on one side of the baseline, each with how far, and between which bounds."""
    higher = (verdict == "better") == (task.metric.better == "higher")
    arms = [arm for arm, each in _verdicts(task).items() if each == verdict]
    far = [f"`{arm}` {_how_far(result.differences[arm], places)}" for arm in arms]
    return (
        f"{verdict.capitalize()} than `{result.baseline}`, "
        f"{'higher' if higher else 'lower'} by: {LISTED.join(far)}."
    )


def _how_far(difference: Difference, places: int) -> str:
    ends = sorted((abs(difference.low or 0), abs(difference.high or 0)))
    low, high = (number(end, telling(end, difference, places)) for end in ends)
    return f"{number(abs(difference.value), places)} ({low} to {high})"


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
            told = [arm for arm, each in whole.items() if each.p is not None and each.p < LEVEL]
            matching = [arm for arm in whole if result.verdict(arm) == "matches"]
            no_worse = [arm for arm in whole if result.verdict(arm) == "not worse"]
            within = f"{share(result.margin or 0)} of the seeds"
            parts = [f"Solved by {solved}."]
            if matching:
                parts.append(f"Match {base} within {within}: {arms_text(matching)}.")
            if no_worse:
                said = f"Not worse by {within} (better is not excluded)"
                parts.append(f"{said}: {arms_text(no_worse)}.")
            if told:
                each = LISTED.join(f"`{arm}` ({p_text(whole[arm].p or 0)})" for arm in told)
                parts.append(f"Clearly different from {base}: {each}.")
            shown = [*told, *matching, *no_worse]
            if len(shown) < len(whole) - 1:
                others = "The others are not" if shown else "None of the others is"
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


def _average(view: View, average: Average) -> Note:
    """The mean over a benchmark's tasks, each arm beside the baseline."""
    result = average.result
    places = decimals(result)
    told: list[str] = []
    for arm in view.arms:
        score, difference = result.means.get(arm), result.differences.get(arm)
        if score is None:
            continue
        text = f"`{arm}` {number(score.value, places)}"
        if difference is not None:
            text += f", {signed(difference.value, places)} {bounds(difference, places)}"
            verdict = difference.verdict(average.metric.better)
            text += f" {verdict}" if difference.clear or difference.matches else ""
        told.append(f"{text.rstrip()}{' (incomplete)' if arm in result.incomplete else ''}")
    left_out = f"; left out, as the baseline did not learn it: {', '.join(average.unlearned)}"
    return Note(
        f"{average.benchmark} average",
        f"the plain mean over {', '.join(average.tasks)} ({seeds_text(result)}; chance "
        f"{number(average.metric.chance, places)}{left_out if average.unlearned else ''}), and the "
        f"difference to `{result.baseline}` paired by seed: {LISTED.join(told)}. It is this "
        "bench's own figure, not the score of a benchmark of that name.",
    )


def _across(view: View) -> list[Note]:
    if not view.aggregates:
        return []
    base = f"`{view.baseline}`"
    tasks = len(next(iter(view.aggregates.values())).tasks)
    told = [f"`{arm}` {_on_scale(each)}" for arm, each in view.aggregates.items()]
    return [
        Note(
            f"Over {tasks} tasks",
            f"interquartile mean of scores on a scale where chance is 0 and {base} 100, minus that "
            f"of {base} (95% for each arm alone): {LISTED.join(told)}.",
        ),
        Note(
            f"Probability that a run beats one of {base}",
            f"{LISTED.join(f'`{arm}` {_chance(each)}' for arm, each in view.aggregates.items())}.",
        ),
    ]


def _on_scale(each: Aggregate) -> str:
    low, high = number(100 * each.low, 1), number(100 * each.high, 1)
    return f"{signed(100 * each.difference, 1)} ({low} to {high})"


def _chance(each: Aggregate) -> str:
    low, high = share(each.improvement_low), share(each.improvement_high)
    return f"{share(each.improvement)} ({low} to {high})"


def _fronts(view: View) -> list[Note]:
    """Who is dominated, on the task whose model the cost columns describe."""
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
            f"{word}: {LISTED.join(groups[outlook])}"
            for outlook, word in PARETO_TEXT.items()
            if outlook in groups
        ]
        notes.append(Note(f"Quality on {task.name} against {front.cost}", f"{'; '.join(parts)}."))
    return notes


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
    # One question asked on several tasks is one family.
    adjusted = holm({task.name: 1.0 if each.p is None else each.p for task, each in tested})
    apart = [
        f"{task.name} {signed(each.value, places)} {bounds(each, places)}"
        for task, each in tested
        if adjusted[task.name] < LEVEL
        for places in [decimals(task.result)]
    ]
    if not apart:
        names = ", ".join(task.name for task, _ in tested)
        return f"{head}, and the study does not tell them apart ({names}), as it should be."
    return (
        f"{head}, yet they differ (the second minus the first): {'; '.join(apart)}. That is the "
        "path of the optimizer or a bug, and other differences of this size may be the same."
    )
