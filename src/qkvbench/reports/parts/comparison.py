"""The comparison of two arms in words: first one sentence, then the details."""

from collections.abc import Callable, Sequence

from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    bounds,
    change,
    margin_text,
    metric_text,
    number,
    p_text,
    plural,
    share,
    signed,
    size,
)
from qkvbench.results import record
from qkvbench.results.pair import Pair, PairStanding, PairTask, Ratio, Side
from qkvbench.results.stats import POWER, WITH_SIZE, Verdict

_PHRASES: dict[Verdict, str] = {
    "diverged": "diverged more often on",
    "worse": "worse on",
    "likely worse": "likely worse on",
    "better": "better on",
    "likely better": "likely better on",
    "matches": "matches on",
    "likely matches": "likely matches on",
    "not worse": "not worse (within the margin) on",
    "likely not worse": "likely not worse (within the margin) on",
    "not distinguishable": "not distinguishable on",
}


def lines(pair: Pair) -> list[str]:
    """The whole comparison; equations are between backquotes."""
    rest = [*(_task(task, pair) for task in pair.tasks), *_costs(pair)]
    return [sentence(pair), "", *(f"• {line}" for line in rest), "", *_notes(pair)]


def sentence(pair: Pair) -> str:
    """The verdicts and the costs, in one sentence."""
    groups: dict[str, list[str]] = {}
    for verdict, phrase in _PHRASES.items():
        names = [_task_phrase(task) for task in pair.tasks if task.verdict == verdict]
        if names:
            groups[phrase] = names
    uncompared = [task.task for task in pair.tasks if task.verdict is None]
    if uncompared:
        groups["not compared on"] = uncompared
    verdicts = "; ".join(f"{phrase} {', '.join(names)}" for phrase, names in groups.items())
    costs = _cost_phrase(pair)
    head = f"`{pair.second}` compared with `{pair.first}`"
    return f"{head}: {verdicts}{f'; it takes {costs}' if costs else ''}."


def _task_phrase(task: PairTask) -> str:
    if task.verdict in ("matches", "likely matches") and task.margin is not None:
        return f"{task.task} (within {_margin(task)})"
    if task.verdict in WITH_SIZE and task.difference is not None:
        return f"{task.task} (by {size(abs(task.difference.value), _places(task))})"
    if task.verdict == "not distinguishable" and task.detectable is not None:
        return f"{task.task} (likely seen from {size(task.detectable, _places(task))})"
    return task.task


def _cost_phrase(pair: Pair) -> str:
    parts: list[str] = []
    if pair.parameters is not None:
        parts.append(f"{_share(pair.parameters)} of the parameters")
    if pair.cache_bytes_per_token is not None:
        parts.append(f"{_share(pair.cache_bytes_per_token)} of the cache")
    if pair.decode_p50_s is not None:
        ratio = pair.decode_ratio
        percent = _share(pair.decode_p50_s) if ratio is None else _percent(ratio.value)
        parts.append(f"{percent}{_interval(ratio)} of the time of a decode step")
    return ", ".join(parts)


def _share(ratio: Ratio) -> str:
    return _percent(ratio.ratio)


def _percent(value: float) -> str:
    return f"{number(100 * value, 1)}%"


def _interval(ratio: record.Ratio | None) -> str:
    """The interval of an observed ratio; empty if there is none."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f" ({_percent(ratio.low)} to {_percent(ratio.high)})"


def _change(ratio: Ratio) -> str:
    return "as many" if ratio.first == ratio.second else change(ratio.second, ratio.first)


def _task(task: PairTask, pair: Pair) -> str:
    head = f"{task.task} ({metric_text(task.metric)}, {plural(len(task.seeds), 'seed')}):"
    return f"{head} {_result(task, pair)}{_failures(task, pair)}"


# What is said of a task by its standing alone.
_STANDINGS: dict[PairStanding, str] = {
    "no seed in common": "not compared; the two have no seed in common.",
    "baseline did not learn": "not compared; the study's baseline did not clearly beat chance.",
    "attention not needed": "not compared; a model without attention does nearly as well here.",
    "runs failed": "not compared, because a run without a score cannot be left out of a mean.",
    "no spread": "not compared; both have the same score on every seed.",
}


def _result(task: PairTask, pair: Pair) -> str:
    match task.standing:
        case "neither learned":
            return (
                "not compared; neither clearly learned "
                f"({_score(task, task.first)} and {_score(task, task.second)}, chance "
                f"{number(task.metric.chance, 3)})."
            )
        case "one seed" if task.difference is not None:
            return f"{_signed(task, task.difference.value)}; one seed has no interval."
        case "one seed":
            return "one seed; too little to compare."
        case "compared" if task.metric.solved is None:
            return _score_result(task, pair)
        case "compared":
            return _count_result(task, pair)
        case standing:
            return _STANDINGS[standing]


def _score_result(task: PairTask, pair: Pair) -> str:
    each = task.difference
    if each is None:
        return f"{_verdict(task)}."
    if each.p is None:
        return f"{_verdict(task)}; {_signed(task, each.value)}; one seed has a score: no interval."
    if each.low is None or each.high is None:
        same = f"{_signed(task, each.value)}, the same on every seed: no interval"
        return f"{_verdict(task)}; {same}, {p_text(each.p)} by permutation."
    places = _places(task)
    parts = [
        f"{_verdict(task)}; {_score(task, task.first)} and {_score(task, task.second)}, difference "
        f"{signed(each.value, places)} {bounds(each, places)}, {p_text(each.p)}"
    ]
    if each.match_p is not None:
        parts.append(f"equivalence within {_margin(task)} {p_text(each.match_p)}")
    else:
        parts.append("no margin, so equivalence is not tested")
    if task.items is not None:
        low, high = task.items.both
        parts.append(f"over items as well [{number(low, places)}, {number(high, places)}]")
    if task.detectable is not None and task.verdict != "worse":
        parts.append(
            f"{share(POWER)} power for a loss from {size(task.detectable, places)} (likely) and "
            f"{size(task.certain_from or 0, places)} (certain), and for a match within "
            f"{size(task.provable or 0, places)}"
        )
    unlearned = [
        f"`{arm}` does not clearly beat chance ({number(task.metric.chance, 3)})"
        for arm, side in ((pair.first, task.first), (pair.second, task.second))
        if side.learned is False
    ]
    return f"{'; '.join([*parts, *unlearned])}."


def _count_result(task: PairTask, pair: Pair) -> str:
    first, second = task.first.count, task.second.count
    assert first is not None
    assert second is not None
    parts = [
        f"{_verdict(task)}; solved by {first.solved} of {first.seeds} and {second.solved} of "
        f"{second.seeds} seeds, {p_text(second.p if second.p is not None else 1.0)}"
    ]
    if second.match_p is not None:
        parts.append(f"equivalence within {_margin(task)} {p_text(second.match_p)}")
    steps = [
        f"`{arm}` {count.step:.0f}"
        for arm, count in ((pair.first, first), (pair.second, second))
        if count.step is not None
    ]
    if steps:
        parts.append(f"median step at which it was solved: {SEPARATOR.join(steps)}")
    return f"{'; '.join(parts)}."


def _failures(task: PairTask, pair: Pair) -> str:
    failures = [
        f"`{arm}` seed {seed} {status}"
        for arm, side in ((pair.first, task.first), (pair.second, task.second))
        for seed, status in side.failures.items()
    ]
    return f" Failures: {SEPARATOR.join(failures)}." if failures else ""


def _verdict(task: PairTask) -> str:
    if task.verdict in ("matches", "likely matches"):
        return f"{task.verdict} within {_margin(task)}"
    return task.verdict or ""


def _margin(task: PairTask) -> str:
    if task.metric.solved is not None:
        return f"{share(task.margin or 0)} of the seeds"
    return margin_text(task.margin or 0, task.metric.unit)


def _costs(pair: Pair) -> list[str]:
    parts: list[str] = []
    if pair.parameters is not None:
        parts.append(_ratio("parameters", pair.parameters, "{:,.0f}".format))
    if pair.macs is not None:
        parts.append(_ratio("MACs", pair.macs, "{:,.0f}".format))
    if pair.cache_bytes_per_token is not None:
        parts.append(_ratio("cache per token", pair.cache_bytes_per_token, bytes_text))
    computed = [f"computed: {'; '.join(parts)}."] if parts else []
    if pair.decode_p50_s is not None:
        text = _ratio("decode step", pair.decode_p50_s, seconds_text)
        if pair.decode_ratio is not None:
            text += (
                f"; over interleaved rounds {_percent(pair.decode_ratio.value)}"
                f"{_interval(pair.decode_ratio)}"
            )
        return [*computed, f"observed: {text}."]
    return [*computed, "latency: not measured for both."]


def _ratio(name: str, ratio: Ratio, text: Callable[[float], str]) -> str:
    return f"{name} {text(ratio.first)} and {text(ratio.second)} ({_change(ratio)})"


def _notes(pair: Pair) -> Sequence[str]:
    return [
        f"Differences are `{pair.second}` minus `{pair.first}`, with 95% intervals from the seeds "
        "of these two alone (Welch's t; proportions as logits; solved tasks by the log-rank test). "
        "Worse and better are certain even among 40 comparisons; one of 20 comparisons of equal "
        "arms is called likely. Not distinguishable is not equal."
    ]


def _places(task: PairTask) -> int:
    each = task.difference
    if each is None or each.low is None or each.high is None or each.high <= each.low:
        return 3
    places = 2
    while places < 4 and (each.high - each.low) / 2 * 10**places < 3:
        places += 1
    return places


def _signed(task: PairTask, value: float) -> str:
    return signed(value, _places(task))


def _score(task: PairTask, side: Side) -> str:
    return "no score" if side.mean is None else number(side.mean, _places(task))
