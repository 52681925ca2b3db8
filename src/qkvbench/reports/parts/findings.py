"""The findings of a study, as sentences made from its statistics."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from qkvbench.cost.units import bytes_text
from qkvbench.model import AGAIN
from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    Note,
    arms_text,
    bound,
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
    size,
)
from qkvbench.reports.parts.headline import complete_arms
from qkvbench.results.averages import Average
from qkvbench.results.dominance import ParetoStatus
from qkvbench.results.pair import pair_on_task
from qkvbench.results.stats import (
    CERTAIN,
    LOSSES,
    POWER,
    WITH_SIZE,
    Comparison,
    Difference,
    Tally,
    Verdict,
)
from qkvbench.results.view import TaskView, View

# The verdicts that exclude a loss beyond the margin.
NO_LOSS: tuple[Verdict, ...] = ("better", "matches")
# How an arm with this verdict stands to the baseline on a task, in the order of the report.
PHRASES: dict[Verdict, str] = {
    "diverged": "Diverged more often than {base}",
    "worse": "Worse than {base}, {bad} by",
    "likely worse": "Likely worse, {bad} by",
    "better": "Better than {base}, {good} by",
    "likely better": "Likely better, {good} by",
    "matches": "Match {base} within {margin}",
    "likely matches": "Likely match within {margin}",
    "not worse": "Not worse by {margin} (better is not excluded)",
    "likely not worse": "Likely not worse by {margin} (better is not excluded)",
    "not distinguishable": "Not distinguishable from {base}",
}

# Dominated: a rival that costs no more is better. On the frontier: all such rivals are worse.
PARETO_TEXT: dict[ParetoStatus, str] = {
    "on the frontier": "on the frontier",
    "dominated": "dominated for certain",
    "likely dominated": "likely dominated",
    "not decided": "not decided",
}


def findings(view: View) -> list[Note]:
    """The verdicts over all tasks, each task, averages, savings and the Pareto fronts."""
    return [
        *_overall(view),
        *_same_arm_again(view),
        *(_task(task) for task in view.tasks),
        *(_average(view, each) for each in view.averages),
        *_over_tasks(view),
        *_savings(view),
        *_pareto(view),
    ]


def _overall(view: View) -> list[Note]:
    by_task = {task.label: each for task in view.tasks if (each := task.verdicts)}
    if not by_task:
        return [Note("No comparison", "no task has comparable arms.")]
    others = view.candidates
    complete = complete_arms(view)
    worse = {arm: _tasks_with(by_task, arm, LOSSES) for arm in others}
    likely = {arm: _tasks_with(by_task, arm, ("likely worse",)) for arm in others}
    without = [arm for arm in complete if not worse[arm] and not likely[arm]]
    matching = [
        arm for arm in without if all(each.get(arm) in NO_LOSS for each in by_task.values())
    ]
    undecided = [arm for arm in without if arm not in matching]
    incomplete = [arm for arm in others if arm not in complete and not worse[arm]]
    tasks = f"all {len(by_task)} compared tasks" if len(by_task) > 1 else "the one compared task"
    base = f"`{view.baseline}`"
    groups = {
        f"Worse than {base} on at least one task": _with_tasks(worse),
        "Likely worse on at least one, and worse on none": _with_tasks(
            {arm: names for arm, names in likely.items() if not worse[arm]}
        ),
        f"Shown to match or to beat {base} on {tasks}": [f"`{arm}`" for arm in matching],
        "Neither shown to match on all nor worse on any": [f"`{arm}`" for arm in undecided],
        "Incomplete, because seeds are missing": [f"`{arm}`" for arm in incomplete],
    }
    notes = [Note(topic, f"{SEPARATOR.join(arms)}.") for topic, arms in groups.items() if arms]
    return notes or [Note("No comparison", "no arm is complete.")]


def _same_arm_again(view: View) -> list[Note]:
    """The verdicts on arms that are the same but for their initial values."""
    notes: list[Note] = []
    for arm in view.arms:
        plain = arm.removesuffix(AGAIN)
        if plain == arm or plain not in view.arms:
            continue
        told = [
            f"{task.label} {each.verdict}"
            for task in view.tasks
            if (each := pair_on_task(task, plain, arm)).verdict is not None
        ]
        notes.append(
            Note(
                f"`{plain}` compared with itself",
                f"`{arm}` differs in its initial values alone, so any difference is a false alarm, "
                f"and likely ones come once in twenty: {', '.join(told) or 'not compared'}.",
            )
        )
    return notes


def _tasks_with(
    by_task: Mapping[str, Mapping[str, Verdict]], arm: str, wanted: Sequence[Verdict]
) -> list[str]:
    return [name for name, each in by_task.items() if each.get(arm) in wanted]


def _with_tasks(by_arm: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"`{arm}` ({', '.join(names)})" for arm, names in by_arm.items() if names]


def _task(task: TaskView) -> Note:
    metric = metric_text(task.metric)
    match task.result:
        case Comparison() as result:
            text = f"{metric}, {seeds_text(result)}. {_comparison_text(task, result)}"
        case Tally() as result:
            threshold = number(task.metric.solved or 0, 2)
            text = f"solved from {metric} {threshold}, {seeds_text(result)}. "
            text += _tally_text(task, result)
    return Note(task.label, text)


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
                f"{base} gains {size(result.worth or 0, places)}, less than twice the loss that "
                f"is seen as likely ({size(result.detectable or 0, places)}); this task says "
                "nothing of variants."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared."
        case "one arm":
            return f"Only {base} is complete, so nothing is compared."
        case "one seed":
            return "One seed shows no spread: the differences have no interval and prove nothing."
        case "no spread":
            return f"Every arm has the score of {base} on all seeds, so there is no interval."
        case "compared":
            return " ".join([*_by_verdict(task), _sensitivity(task, result, places)])


def _by_verdict(task: TaskView) -> list[str]:
    """The arms of each verdict, in sentences."""
    by_arm = task.verdicts
    result, places = task.result, decimals(task.result)
    higher = task.metric.better == "higher"
    sentences: list[str] = []
    for verdict, phrase in PHRASES.items():
        arms = [arm for arm, each in by_arm.items() if each == verdict]
        if not arms:
            continue
        head = phrase.format(
            base=f"`{result.baseline}`",
            bad="lower" if higher else "higher",
            good="higher" if higher else "lower",
            margin=_margin(task),
        )
        if isinstance(result, Tally):
            head = head.partition(", ")[0]
            texts = [f"`{arm}` ({p_text(result.counts[arm].p or 0)})" for arm in arms]
        elif verdict in WITH_SIZE:
            texts = [f"`{arm}` {_size_text(result.differences[arm], places)}" for arm in arms]
        elif verdict == "diverged":
            texts = [f"`{arm}` ({plural(result.diverged[arm], 'run')})" for arm in arms]
        else:
            texts = [f"`{arm}`" for arm in arms]
        sentences.append(f"{head}: {SEPARATOR.join(texts)}.")
    return sentences


def _margin(task: TaskView) -> str:
    margin = task.result.margin or 0
    if isinstance(task.result, Tally):
        return f"{share(margin)} of the seeds"
    return margin_text(margin, task.metric.unit)


def _sensitivity(task: TaskView, result: Comparison, places: int) -> str:
    """The loss that would be seen in an arm that varies as the baseline does."""
    if result.detectable is None or result.certain_from is None:
        return "The baseline's scores do not vary, so what would be seen is not known."
    text = (
        f"With {share(POWER)} power a loss is seen as likely from "
        f"{size(result.detectable, places)} and for certain from "
        f"{size(result.certain_from, places)}, in an arm that varies as the baseline does"
    )
    if result.margin is None:
        return f"{text}; there is no margin for {task.metric.unit}, so no arm can match."
    if result.provable is None or result.provable <= result.margin:
        return f"{text}."
    return (
        f"{text}; an equal one could be shown to match within {size(result.provable, places)}, "
        f"not within {margin_text(result.margin, task.metric.unit)}."
    )


def _size_text(difference: Difference, places: int) -> str:
    if difference.low is None:
        return f"{number(abs(difference.value), places)} on every seed"
    ends = sorted((abs(difference.low or 0), abs(difference.high or 0)))
    low, high = (bound(end, difference, places) for end in ends)
    return f"{number(abs(difference.value), places)} ({low} to {high})"


def _tally_text(task: TaskView, result: Tally) -> str:
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
                "A model without attention does not solve it later or on fewer seeds than "
                f"{base}; this task says nothing of variants. Solved: {solved}."
            )
        case "baseline incomplete":
            return f"{base} lacks seeds, so nothing is compared. Solved: {solved}."
        case "one seed" | "one arm" | "no spread":
            return f"{solved}; too little to compare."
        case "compared":
            least = 2 / math.comb(2 * len(result.seeds), len(result.seeds))
            few = (
                f" With {seeds_text(result)} no difference could be certain: it takes "
                f"{_seeds_for_certainty()}."
                if least >= CERTAIN
                else ""
            )
            return f"Solved by {solved}. {' '.join(_by_verdict(task))}{few}"


def _seeds_for_certainty() -> int:
    """The fewest seeds at which the log-rank test of two arms can be certain."""
    return next(n for n in range(2, 100) if 2 / math.comb(2 * n, n) < CERTAIN)


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
            text += "" if verdict == "not distinguishable" else f" {verdict}"
        arms.append(f"{text.rstrip()}{' (incomplete)' if arm in result.incomplete else ''}")
    left_out = f"; left out, since they say nothing of variants: {', '.join(average.left_out)}"
    return Note(
        f"{average.benchmark} average",
        f"the plain mean over {', '.join(average.tasks)} ({seeds_text(result)}; chance "
        f"{number(average.metric.chance, places)}{left_out if average.left_out else ''}), and the "
        f"difference to `{result.baseline}`: {SEPARATOR.join(arms)}. It is this "
        "project's own figure, not the score of a benchmark of that name.",
    )


def _over_tasks(view: View) -> list[Note]:
    if not view.aggregates:
        return []
    tasks = len(next(iter(view.aggregates.values())).tasks)
    arms = SEPARATOR.join(
        f"`{arm}` {_percent(each.mean)} ({_percent(each.low)} to {_percent(each.high)}), worst "
        f"{_percent(each.worst)} on {view.label(each.worst_task)}"
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
        notes.append(Note(f"Quality on {task.label} against {front.cost}", f"{'; '.join(parts)}."))
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
            f"Parameters (model of {view.label(view.cost_task or '')})",
            f"{base.total_parameters:,} with `{view.baseline}`; {SEPARATOR.join(parameters)}.",
        )
    ]
    base_bytes = base.cache_bytes_per_token
    if base_bytes:
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
