"""The answer of a study in one or two sentences, and the few lines that say how sure it is."""

from collections.abc import Collection, Mapping, Sequence

from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    Note,
    decimals,
    number,
    plural,
    printable,
    share,
)
from qkvbench.reports.parts.table import nickname
from qkvbench.results.across import CONTROLS, FLOOR, has_attention
from qkvbench.results.preregistration import judge_hypotheses
from qkvbench.results.stats import LOSSES, VERDICTS, Comparison, Tally, Verdict
from qkvbench.results.view import TaskView, View

LIKELY_LOSS: Verdict = "likely worse"
# The verdicts by which a loss is excluded, or one beyond the margin, at least likely.
NO_LOSS: tuple[Verdict, ...] = tuple(
    verdict for verdict in VERDICTS if verdict not in (*LOSSES, LIKELY_LOSS, "not distinguishable")
)
MEAN = CONTROLS[0]
# The native kernel, in the record of a measurement.
NATIVE = "qkvbench::decode"
# Of the losses for which an arm leaves room; more are counted.
NAMED_LOSSES = 3


def headline(view: View) -> str:
    """The cheapest arm that was not seen to lose, or that there is none."""
    compared = [task for task in view.tasks if task.result.standing == "compared"]
    base = f"`{view.baseline}`"
    if not compared:
        return f"Nothing can be said yet: {_why_nothing(view)}."
    losses = losing(view)
    if not losses:
        return _worth(view)
    what, costs = _costs(view, list(losses))
    cheaper = [arm for arm in losses if costs[arm] < costs[view.baseline]]
    cheaper.sort(key=lambda arm: costs[arm])
    tasks = "the task" if len(compared) == 1 else f"any of {len(compared)} tasks"
    safe = [arm for arm in cheaper if not losses[arm]]
    if safe:
        best = safe[0]
        open_ = [task.name for task in compared if task.verdicts[best] not in NO_LOSS]
        says = f"does not lose against {base} on {tasks}"
        if all(task.verdicts[best] == "better" for task in compared):
            says = f"is better than {base} on {tasks}"
        elif open_:
            says = f"is not seen to lose against {base} on {tasks}"
            says += f", which is not decided on {_counted(open_, len(compared))}"
        part = _part(best, costs[best] / costs[view.baseline], what)
        return f"{_named(best)} takes {part} and {says}; {_open_losses(compared, best)}."
    if not cheaper:
        return f"No arm that is complete takes less cache or fewer parameters than {base}."
    least = min(cheaper, key=lambda arm: (len(losses[arm]), costs[arm]))
    return (
        f"Every arm with less of the {what} than {base} loses on at least one task. The fewest "
        f"losses: {_named(least)}, {_part(least, costs[least] / costs[view.baseline], what)}, on "
        f"{_counted(losses[least], len(compared))}."
    )


def _part(arm: str, of_baseline: float, what: str) -> str:
    """A cost beside the baseline's; attention without a cache has a state."""
    if what == "cache" and not of_baseline and has_attention(arm):
        return "a state of fixed size in place of the cache"
    return f"{share(of_baseline)} of the {what}"


def _counted(lost: Sequence[str], tasks: int) -> str:
    """The tasks by name if they are few, or how many they are."""
    return ", ".join(lost) if len(lost) <= NAMED_LOSSES else f"{len(lost)} of {tasks} tasks"


def _worth(view: View) -> str:
    """The worth of attention, if the study has no arm but controls."""
    worth = [
        f"{_size(task, task.result.worth)} on {task.name}"
        for task in view.tasks
        if isinstance(task.result, Comparison)
        and task.result.standing == "compared"
        and task.result.worth is not None
    ]
    solved = [
        f"{task.result.counts[view.baseline].solved} of {len(task.result.seeds)} seeds, not "
        f"{task.result.counts[FLOOR].solved}, on {task.name}"
        for task in view.tasks
        if isinstance(task.result, Tally)
        and task.result.standing == "compared"
        and FLOOR in task.result.counts
    ]
    if not worth and not solved:
        return "This study compares its baseline with nothing but itself and controls."
    return f"Attention is worth {', '.join([*worth, *solved])}."


def _size(task: TaskView, value: float | None) -> str:
    unit = "" if task.metric.unit == "share" else f" {task.metric.unit}"
    size, places = abs(value or 0.0), decimals(task.result)
    # A size that is not zero is not printed as zero.
    while 1e-6 < size < 0.5 * 10.0**-places:
        places += 1
    return f"{number(value or 0.0, places)}{unit}"


def registered_sentence(view: View) -> str:
    """How many of the registered hypotheses were confirmed; empty if none was registered."""
    if view.preregistered is None:
        return ""
    outcomes = [judged.outcome for judged in judge_hypotheses(view)]
    counts = [f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)]
    return (
        f"Hypotheses registered before the first run, of {len(outcomes)}: {', '.join(counts)}. All "
        "else is exploratory."
    )


def losing(view: View) -> dict[str, list[str]]:
    """The tasks on which each complete arm loses, certainly or likely; without controls."""
    by_task = {
        task.name: task.verdicts for task in view.tasks if task.result.standing == "compared"
    }
    arms = [arm for arm in view.candidates if all(arm in found for found in by_task.values())]
    return {
        arm: [name for name, found in by_task.items() if found[arm] in (*LOSSES, LIKELY_LOSS)]
        for arm in arms
    }


def controls_sentence(view: View) -> str:
    """The tasks on which controls do as well, which say less of Q, K and V; empty if none does."""
    compared = [task for task in view.tasks if task.result.standing == "compared"]
    alike = [
        task.name
        for task in compared
        if task.verdicts.get(MEAN, LIKELY_LOSS) not in (*LOSSES, LIKELY_LOSS)
    ]
    if not alike:
        return ""
    says = "which says" if len(alike) == 1 else "which say"
    return (
        f"The plain mean of all visible tokens, `{MEAN}`, is not seen to lose on "
        f"{' and '.join(alike)}, {says} little of Q and K."
    )


def basis(view: View) -> list[Note]:
    """The basis of the answer: the losses, what would have been seen, and what is left out."""
    notes: list[Note] = []
    by_task = {task.name: task.verdicts for task in view.tasks}
    for topic, wanted in (("Worse", LOSSES), ("Likely worse", (LIKELY_LOSS,))):
        counts = {
            name: sum(found.get(arm) in wanted for arm in view.candidates)
            for name, found in by_task.items()
        }
        told = [f"{plural(count, 'arm')} on {name}" for name, count in counts.items() if count]
        if told:
            notes.append(Note(topic, f"{', '.join(told)}."))
    if seen := _sensitivities(view):
        notes.append(Note("Smallest loss seen as likely", f"{SEPARATOR.join(seen)}."))
    if alike := controls_sentence(view):
        notes.append(Note("Control", alike))
    return [*notes, *cautions(view)]


def cautions(view: View) -> list[Note]:
    """The tasks that are left out, and what would have to be known of all others."""
    notes = [*_left_out(view), _rates(view)]
    if decoded := kernels_text(view):
        notes.append(Note("Decode", decoded))
    if FLOOR not in view.arms and view.tasks:
        text = f"how much of a score needs attention is not known; the arm `{FLOOR}` tells."
        notes.append(Note("No control without attention", text))
    return notes


def kernels_text(view: View, arms: Collection[str] | None = None) -> str | None:
    """The arms, of these or all, that a CPU decoded by another program than the native kernel."""
    native = {
        arm: NATIVE in each.kernel
        for arm, each in view.measurements.items()
        if (arms is None or arm in arms)
        and each.decode_p50_s
        and (each.backend, each.machine.device) == ("torch", "cpu")
    }
    # Without attention there is no kernel that could be another one.
    native.pop(FLOOR, None)
    without = [arm for arm, own in native.items() if not own]
    if not without:
        return None
    if len(without) == len(native):
        return (
            "by torch, for want of the native kernel; with it decode times may stand in another "
            "order."
        )
    return (
        "without the native kernel, so their time is of another program: "
        f"{printable(', '.join(without))}."
    )


def _sensitivities(view: View) -> list[str]:
    """The smallest loss that is likely seen, by task."""
    found: list[str] = []
    for task in view.tasks:
        result = task.result
        if isinstance(result, Comparison) and result.detectable is not None:
            seeds = plural(len(result.seeds), "seed")
            found.append(f"{_size(task, result.detectable)} on {task.name} ({seeds})")
    return found


def _left_out(view: View) -> list[Note]:
    return [
        Note("Left out", f"{', '.join(names)}: {standing}.")
        for standing, names in _by_standing(view).items()
    ]


def _by_standing(view: View) -> dict[str, list[str]]:
    """The tasks that are not compared, by the reason."""
    by_standing: dict[str, list[str]] = {}
    for task in view.tasks:
        if task.result.standing != "compared":
            by_standing.setdefault(task.result.standing, []).append(task.name)
    return by_standing


def _rates(view: View) -> Note:
    if view.carried:
        return Note("Learning rate", f"each arm's as {view.carried.taken_from} tuned it.")
    if not view.tuning:
        return Note("Learning rate", "one for all arms of a task; tuned, an arm could do better.")
    first = view.tuning[0]
    tried = f"{len(first.rates)} rates × {plural(len(first.seeds), 'seed')}"
    return Note("Learning rate", f"tuned for each arm on validation ({tried}).")


def _why_nothing(view: View) -> str:
    by_standing = _by_standing(view)
    return (
        "; ".join(
            f"{', '.join(names) if len(names) < 4 else f'{len(names)} tasks'}: {standing}"
            for standing, names in by_standing.items()
        )
        or "no task has a run"
    )


def _costs(view: View, arms: Sequence[str]) -> tuple[str, Mapping[str, float]]:
    """The cost that the headline is about: the cache if any arm has less, else parameters."""
    cache = {arm: float(cost.cache_bytes_per_token or 0) for arm, cost in view.costs.items()}
    base = cache.get(view.baseline, 0.0)
    if base and all(arm in cache for arm in arms) and any(cache[arm] < base for arm in arms):
        return "cache", cache
    costs = view.costs or next((task.costs for task in view.tasks if task.costs), {})
    return "parameters", {arm: float(cost.total_parameters) for arm, cost in costs.items()}


def _open_losses(tasks: Sequence[TaskView], arm: str) -> str:
    """The losses for which the arm's intervals leave room, and how it solved the other tasks."""
    losses: list[str] = []
    solved: list[str] = []
    for task in tasks:
        result = task.result
        if isinstance(result, Tally):
            own = result.counts[arm]
            solved.append(f"{own.solved} of {own.seeds} seeds solve {task.name}")
            continue
        each = result.differences[arm]
        # Without spread there is the difference alone.
        low, high = (each.value if end is None else end for end in (each.low, each.high))
        end = -low if task.metric.better == "higher" else high
        if end > 0:
            losses.append(f"{_size(task, end)} on {task.name}")
    measured = len(tasks) > len(solved)
    room = "its intervals leave no room for a loss" if measured else ""
    if losses:
        more = len(losses) - NAMED_LOSSES
        room = f"its intervals leave room for a loss of {', '.join(losses[:NAMED_LOSSES])}"
        room += f" and on {more} more" if more > 0 else ""
    return "; ".join(filter(None, [room, *solved]))


def _named(arm: str) -> str:
    name = nickname(arm)
    return f"`{arm}`" if name is None else f"`{arm}` ({name})"
