"""The evidence of all folders on one arm, in words: a sentence, then a line for each setting."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from qkvbench.cost.units import count_text
from qkvbench.experiment import PRECISIONS
from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    bounds,
    decimals,
    number,
    p_text,
    plural,
    signed,
)
from qkvbench.results.evidence import Setting, difference_of
from qkvbench.results.stats import VERDICTS, WITH_SIZE, Comparison, Count, Tally, Verdict

# Folders that a line names.
NAMED_FOLDERS = 2
HEADS = ("setting", "difference, 95%", "p", "seeds", "speed", "folders")
# Columns that every width has, and blanks before each.
LEAST_COLUMNS, GAP = 2, 2


def sentence(found: Sequence[Setting], arm: str, against: str) -> str:
    """How often each verdict, over all settings."""
    counts: dict[Verdict, int] = {}
    for each in found:
        if each.verdict is not None:
            counts[each.verdict] = counts.get(each.verdict, 0) + 1
    parts = [f"{verdict} in {counts[verdict]}" for verdict in VERDICTS if verdict in counts]
    silent = sum(each.verdict is None for each in found)
    if silent:
        parts.append(f"nothing to say in {silent}")
    return f"`{arm}` against `{against}`, in {plural(len(found), 'setting')}: {', '.join(parts)}."


def lines(found: Sequence[Setting], arm: str, against: str, width: int | None = None) -> list[str]:
    """The sentence, the settings by verdict, and how to read them.

    Of a table that is wider than `width` the last columns are left out, which a line says.
    """
    named = _named(found)
    rows = {
        each: (named[each], *_size(each, arm), _seeds(each), _speed(each), _folders(each))
        for each in found
        if each.verdict is not None
    }
    widths = [max(map(len, column)) for column in zip(HEADS, *rows.values(), strict=True)]
    shown = len(HEADS)
    while width and shown > LEAST_COLUMNS and sum(widths[:shown]) + GAP * shown > width:
        shown -= 1

    def line(cells: Sequence[str]) -> str:
        pairs = list(zip(cells, widths, strict=True))[:shown]
        return "".join(" " * GAP + cell.ljust(size) for cell, size in pairs).rstrip()

    table = [line(HEADS)]
    for verdict in VERDICTS:
        own = [line(rows[each]) for each in found if each.verdict == verdict]
        table += [verdict, *own] if own else []
    if shown < len(HEADS):
        table.append(f"Not shown, for the width: {', '.join(HEADS[shown:])}.")
    silent = [f"{named[each]} ({each.silence})" for each in found if each.verdict is None]
    return [
        sentence(found, arm, against),
        "",
        *(table if rows else []),
        *([f"Nothing to say: {SEPARATOR.join(silent)}."] if silent else []),
        "",
        f"Each line: steps and parameters of all runs of `{arm}` and `{against}` that share "
        "everything but arm, seed and the task's name, from all folders. Worse and better are "
        "certain even among 40 comparisons; one of 20 comparisons of equal arms is called likely. "
        "Seeds: the arm's, and the baseline's if they are not as many. 4/7 at 850: seeds that "
        "solve the task, and their median step.",
        "Speed: the compute with which the slower arm's final score is reached by the other, over "
        "the slower one's; above 1 if the arm is the faster. Read off validation curves before the "
        "learning rate has come down, so the true figure is further from 1, by more the longer "
        "a budget is: speeds of different budgets do not compare.",
    ]


def _named(found: Sequence[Setting]) -> dict[Setting, str]:
    """Each setting in words; two that differ in their learning rate alone have it as well."""
    names = {each: _setting(each) for each in found}
    counts = Counter(names.values())
    return {
        each: f"{name}, rate {each.shared.training.learning_rate:g}" if counts[name] > 1 else name
        for each, name in names.items()
    }


def _setting(each: Setting) -> str:
    shared = each.shared
    parts = [f"{each.names[0]}, {shared.training.steps:,} steps"]
    parts.append(count_text(each.parameters))
    if each.tuned:
        parts.append("rates tuned")
    if shared.teacher:
        parts.append(f"taught by {shared.teacher.arm}")
    if shared.backend != "torch":
        parts.append(shared.backend)
    if shared.execution != PRECISIONS[0]:
        parts.append(shared.execution)
    return ", ".join(parts)


def _size(each: Setting, arm: str) -> tuple[str, str]:
    """How large the difference is, and its p."""
    if isinstance(each.result, Tally):
        count, base = each.result.counts.get(arm), each.result.counts.get(each.result.baseline)
        if count is None or base is None:
            return "", ""
        text = f"{_solved(count)}, not {_solved(base)}"
        return text, "" if count.p is None else p_text(count.p)
    difference = difference_of(each, arm)
    if difference is None or difference.p is None:
        return "", ""
    assert isinstance(each.result, Comparison)
    places = decimals(replace(each.result, differences={arm: difference}))
    size = f"{signed(difference.value, places)} {bounds(difference, places)}"
    return size, p_text(difference.p)


def _solved(count: Count) -> str:
    """The seeds that solved the task, and the median step at which they did."""
    at = "" if count.step is None else f" at {count.step:,.0f}"
    return f"{count.solved}/{count.seeds}{at}"


def _speed(each: Setting) -> str:
    """The effective speed-up of an arm that is better or worse, if its curves agree with that."""
    if each.speed is None or each.verdict not in WITH_SIZE:
        return ""
    agrees = (each.speed > 1) == ("better" in each.verdict)
    return f"×{number(each.speed, 2)}" if agrees else ""


def _folders(each: Setting) -> str:
    """The folders with runs of the arm, the first ones by name."""
    more = len(each.folders) - NAMED_FOLDERS
    text = ", ".join(each.folders[:NAMED_FOLDERS])
    return f"{text} and {more} more" if more > 0 else text


def _seeds(each: Setting) -> str:
    base, own = each.seeds
    return str(own) if own == base else f"{own} and {base}"
