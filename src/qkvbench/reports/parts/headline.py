"""The answer of a study in one or two sentences, and the few lines that say how sure it is."""

from collections.abc import Collection, Mapping, Sequence

from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    Note,
    decimals,
    plural,
    printable,
    share,
    size,
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
# Losses, tasks or arms that a sentence names; more are counted.
MOST_NAMED = 3


def headline(view: View) -> str:
    """The cheapest arm that was not seen to lose, or that there is none."""
    compared = [task for task in view.tasks if task.result.standing == "compared"]
    if not compared:
        return f"Nothing can be said yet: {_why_nothing(view)}."
    if not view.candidates:
        return _worth(view)
    losses = losing(view)
    if not losses:
        tasks = "the task" if len(compared) == 1 else f"all {len(compared)} tasks"
        return f"No arm can be judged: none is complete on {tasks} compared."
    what, costs = _costs(view, losses)
    parts = {arm: _part(arm, costs[arm] / costs[view.baseline], what) for arm in losses}
    cheaper = [arm for arm in losses if costs[arm] < costs[view.baseline]]
    cheaper.sort(key=lambda arm: costs[arm])
    if best := next((arm for arm in cheaper if not losses[arm]), None):
        says = _no_loss(view, compared, best)
        return f"{_named(best)} takes {parts[best]} and {says}; {_open_losses(compared, best)}."
    silent = _not_complete(view, losses)
    if not cheaper:
        says = f"takes less cache or fewer parameters than `{view.baseline}`"
        return f"No arm that is complete {says}.{silent}"
    least = min(cheaper, key=lambda arm: (len(losses[arm]), costs[arm]))
    return (
        f"Every {'complete ' if silent else ''}arm with less of the {what} than `{view.baseline}` "
        f"loses on at least one task. The fewest losses: {_named(least)}, {parts[least]}, on "
        f"{_counted(losses[least], len(compared))}.{silent}"
    )


def _no_loss(view: View, compared: Sequence[TaskView], arm: str) -> str:
    """How sure it is that an arm does not lose."""
    base = f"`{view.baseline}`"
    tasks = "the task" if len(compared) == 1 else f"any of {len(compared)} tasks"
    if all(task.verdicts.get(arm) == "better" for task in compared):
        return f"is better than {base} on {tasks}"
    undecided = [task.label for task in compared if task.verdicts.get(arm) not in NO_LOSS]
    if not undecided:
        return f"does not lose against {base} on {tasks}"
    return (
        f"is not seen to lose against {base} on {tasks}, which is not decided on "
        f"{_counted(undecided, len(compared))}"
    )


def _not_complete(view: View, judged: Collection[str]) -> str:
    """The arms that are not judged, in a sentence; empty if there is none."""
    others = [f"`{arm}`" for arm in view.candidates if arm not in judged]
    if not others:
        return ""
    named = ", ".join(others) if len(others) <= MOST_NAMED else plural(len(others), "arm")
    return f" Not complete: {named}."


def _part(arm: str, of_baseline: float, what: str) -> str:
    """A cost beside the baseline's; attention without a cache has a state."""
    if what == "cache" and not of_baseline and has_attention(arm):
        return "a state of fixed size in place of the cache"
    return f"{share(of_baseline)} of the {what}"


def _counted(lost: Sequence[str], tasks: int) -> str:
    """The tasks by name if they are few, or how many they are."""
    return ", ".join(lost) if len(lost) <= MOST_NAMED else f"{len(lost)} of {tasks} tasks"


def _worth(view: View) -> str:
    """The worth of attention, if the study has no arm but controls."""
    worth = [
        f"{_size(task, task.result.worth)} on {task.label}"
        for task in view.tasks
        if isinstance(task.result, Comparison)
        and task.result.standing == "compared"
        and task.result.worth is not None
    ]
    solved = [
        f"{task.result.counts[view.baseline].solved} of {len(task.result.seeds)} seeds, not "
        f"{task.result.counts[FLOOR].solved}, on {task.label}"
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
    return f"{size(value or 0.0, decimals(task.result))}{unit}"


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
        task.label: task.verdicts for task in view.tasks if task.result.standing == "compared"
    }
    return {
        arm: [name for name, found in by_task.items() if found.get(arm) in (*LOSSES, LIKELY_LOSS)]
        for arm in complete_arms(view)
    }


def complete_arms(view: View) -> list[str]:
    """The arms that have all their runs on every compared task; without controls."""
    lacking = {
        arm
        for task in view.tasks
        if task.result.standing == "compared"
        for arm in task.result.incomplete
    }
    return [arm for arm in view.candidates if arm not in lacking]


def controls_sentence(view: View) -> str:
    """The tasks on which controls do as well, which say less of Q, K and V; empty if none does."""
    compared = [task for task in view.tasks if task.result.standing == "compared"]
    alike = [
        task.label
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
    by_task = {task.label: task.verdicts for task in view.tasks}
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
    notes = [*_left_out(view), *_other_runs(view), _rates(view)]
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
            found.append(f"{_size(task, result.detectable)} on {task.label} ({seeds})")
    return found


def _left_out(view: View) -> list[Note]:
    return [
        Note("Left out", f"{', '.join(names)}: {standing}.")
        for standing, names in _by_standing(view).items()
    ]


def _other_runs(view: View) -> list[Note]:
    """The runs of the folder that are in no table: other seeds, arms, tasks or settings."""
    if not view.others:
        return []
    verb = "is" if view.others == 1 else "are"
    text = f"{plural(view.others, 'other run')} in this folder, which {verb} not of this study."
    return [Note("Not in the table", text)]


def _by_standing(view: View) -> dict[str, list[str]]:
    """The tasks that are not compared, by the reason."""
    by_standing: dict[str, list[str]] = {}
    for task in view.tasks:
        if task.result.standing != "compared":
            by_standing.setdefault(task.result.standing, []).append(task.label)
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


def _costs(view: View, arms: Collection[str]) -> tuple[str, Mapping[str, float]]:
    """The cost that the headline is about: the cache if any arm has less, else parameters."""
    models = (view.costs, *(task.costs for task in view.tasks))
    # The cost task may lack runs; one that is compared has some of the baseline and of these arms.
    costs = next(each for each in models if {view.baseline, *arms} <= each.keys())
    cache = {arm: float(cost.cache_bytes_per_token or 0) for arm, cost in costs.items()}
    if any(cache[arm] < cache[view.baseline] for arm in arms):
        return "cache", cache
    return "parameters", {arm: float(cost.total_parameters) for arm, cost in costs.items()}


def _open_losses(tasks: Sequence[TaskView], arm: str) -> str:
    """The losses for which the arm's intervals leave room, and how it solved the other tasks."""
    losses: list[str] = []
    solved: list[str] = []
    for task in tasks:
        result = task.result
        if isinstance(result, Tally):
            own = result.counts[arm]
            solved.append(f"{own.solved} of {own.seeds} seeds solve {task.label}")
            continue
        each = result.differences[arm]
        # Without spread there is the difference alone.
        low, high = (each.value if end is None else end for end in (each.low, each.high))
        end = -low if task.metric.better == "higher" else high
        if end > 0:
            losses.append(f"{_size(task, end)} on {task.label}")
    measured = len(tasks) > len(solved)
    room = "its intervals leave no room for a loss" if measured else ""
    if losses:
        more = len(losses) - MOST_NAMED
        room = f"its intervals leave room for a loss of {', '.join(losses[:MOST_NAMED])}"
        room += f" and on {more} more" if more > 0 else ""
    return "; ".join(filter(None, [room, *solved]))


def _named(arm: str) -> str:
    name = nickname(arm)
    return f"`{arm}`" if name is None else f"`{arm}` ({name})"
