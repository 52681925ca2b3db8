"""The table of the answer: one line for each arm, as values, and as CSV, LaTeX and Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports.parts.formatting import (
    decimals,
    metric_text,
    number,
    plural,
    printable,
    share,
    signed,
    spreadsheet_text,
    task_text,
)
from qkvbench.reports.parts.table import DASH, SYMBOLS, TONES, Line, nickname
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView, View


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and the number by which its column is sorted."""

    line: Line
    key: float | None


@dataclass(frozen=True)
class AnswerColumn:
    """A head of two lines, and a cell for each arm; `task` is None for a cost."""

    head: tuple[str, str]
    cells: tuple[Cell, ...]
    task: str | None = None


def answer_columns(view: View) -> tuple[AnswerColumn, ...]:
    """The tasks, then cache, parameters and decode time."""
    tasks = [
        AnswerColumn(_head(task), tuple(_cell(task, arm) for arm in view.arms), task.name)
        for task in view.tasks
    ]
    return (*tasks, *_cost_columns(view))


def csv_text(view: View) -> str:
    """All numbers of the table, unrounded: one row for each arm."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = ["arm", "name", "parameters", "cache_bytes_per_token", "decode_p50_s"]
    for task in view.tasks:
        words = _TALLY_HEADS if isinstance(task.result, Tally) else _SCORE_HEADS
        heads += [f"{task.name} {word}" for word in words]
    writer.writerow(map(spreadsheet_text, heads))
    for arm in view.arms:
        cost, measured = view.costs.get(arm), view.measurements.get(arm)
        row: list[object] = [arm, nickname(arm) or ""]
        row += [cost.total_parameters, cost.cache_bytes_per_token] if cost else [None, None]
        row.append(measured.decode_p50_s if measured else None)
        for task in view.tasks:
            row += _numbers(task, arm)
        writer.writerow(spreadsheet_text(each) if isinstance(each, str) else each for each in row)
    return file.getvalue()


def markdown(view: View) -> str:
    """The table in Markdown."""
    heads, rows = _texts(view)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(
        f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |\n" for line in lines
    )


def latex(view: View) -> str:
    r"""The table in LaTeX, for the packages `booktabs` and `amssymb`."""
    heads, rows = _texts(view)
    lines = [
        r"% \usepackage{booktabs,amssymb}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        rf"{' & '.join(map(_tex, heads))} \\",
        r"\midrule",
        *(rf"{' & '.join([_code(first), *map(_tex, rest)])} \\" for first, *rest in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_SCORE_HEADS = ("mean", "difference", "low", "high", "verdict")
_TALLY_HEADS = ("solved", "seeds", "median step", "p", "verdict")


def _numbers(task: TaskView, arm: str) -> list[object]:
    verdict = task.verdicts.get(arm, "")
    match task.result:
        case Comparison(means=means, differences=differences):
            mean, each = means.get(arm), differences.get(arm)
            bounds = [each.value, each.low, each.high] if each else [None] * 3
            return [mean.value if mean else None, *bounds, verdict]
        case Tally(counts=counts):
            count = counts.get(arm)
            found = [count.solved, count.seeds, count.step, count.p] if count else [None] * 4
            return [*found, verdict]


def _texts(view: View) -> tuple[list[str], list[list[str]]]:
    columns = answer_columns(view)
    heads = ["", *(printable(" ".join(filter(None, column.head))) for column in columns)]
    rows = [
        [printable(arm), *(printable(column.cells[row].line.text) for column in columns)]
        for row, arm in enumerate(view.arms)
    ]
    return heads, rows


_TEX = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "▼": r"$\blacktriangledown$",
    "▲": r"$\blacktriangle$",
    "▽": r"$\triangledown$",
    "△": r"$\vartriangle$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "µ": r"$\mu$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


def _code(text: str) -> str:
    return rf"\texttt{{{_tex(text)}}}"


# Shorter than `metric_text`, for the head of a column.
_METRICS = {
    "balanced_accuracy": "bal. acc.",
    "bits_per_byte": "bits/byte",
    "bits_per_token": "bits/token",
    "recall_at_5": "recall@5",
    "bleu": "BLEU",
}


def _head(task: TaskView) -> tuple[str, str]:
    if isinstance(task.result, Tally):
        return task_text(task.name), "solved, step"
    arrow = "↑" if task.metric.better == "higher" else "↓"
    return task_text(
        task.name
    ), f"{_METRICS.get(task.metric.name, metric_text(task.metric))} {arrow}"


def _cell(task: TaskView, arm: str) -> Cell:
    result = task.result
    verdict = task.verdicts.get(arm, "not distinguishable")
    symbol, tone = SYMBOLS.get(verdict, ""), TONES.get(verdict, "quiet")
    if arm == result.baseline:
        tone = "plain"
    match result:
        case Comparison(means=means):
            key = means[arm].value if arm in means else None
            line = _score(result, arm)
            line = Line(symbol + line.text, tone)
            if verdict == "diverged":
                line = Line(f"{symbol}{result.diverged[arm]} diverged", tone)
        case Tally(counts=counts):
            count = counts.get(arm)
            # Sooner is better among arms that solve as many.
            key = None if count is None else count.solved - (count.step or 0) * 1e-9
            step = "" if count is None or count.step is None else f", {count.step:.0f}"
            line = Line(
                DASH if count is None else f"{symbol}{count.solved}/{count.seeds}{step}", tone
            )
    if arm in result.incomplete:
        scores = len(task.cell(arm).scores)
        line = Line(f"{scores} of {plural(len(result.seeds), 'seed')}", "failed")
    return Cell(line, key)


def _score(result: Comparison, arm: str) -> Line:
    """The baseline's score, another arm's difference; its own score if nothing is compared."""
    places = decimals(result)
    each = result.differences.get(arm)
    if each is None:
        mean = result.means.get(arm)
        return Line(DASH if mean is None else _short(number(mean.value, places)))
    text = _short(signed(each.value, places))
    if each.low is not None and each.high is not None:
        text += f" ±{_short(number((each.high - each.low) / 2, places))}"
    return Line(text)


def _short(text: str) -> str:
    """A number without its leading zero."""
    return text.replace("0.", ".", 1) if text.lstrip("+−").startswith("0.") else text


def _cost_columns(view: View) -> list[AnswerColumn]:
    base = view.costs.get(view.baseline)
    columns: list[AnswerColumn] = []
    if base is not None and base.cache_bytes_per_token:
        sizes = [_known(view, arm, "cache") for arm in view.arms]
        cells = _shares(sizes)
        columns.append(AnswerColumn(("cache", bytes_text(base.cache_bytes_per_token)), cells))
    if base is not None:
        counts = [_known(view, arm, "parameters") for arm in view.arms]
        text = count_text(base.total_parameters)
        columns.append(AnswerColumn(("params", text), _shares(counts)))
    first = view.measurements.get(view.baseline)
    if first is not None and first.decode_p50_s:
        cells = tuple(_decode(view, arm, first.decode_p50_s) for arm in view.arms)
        columns.append(AnswerColumn(("decode", seconds_text(first.decode_p50_s)), cells))
    return columns


def _known(view: View, arm: str, kind: str) -> float | None:
    cost = view.costs.get(arm)
    if cost is None:
        return None
    return cost.total_parameters if kind == "parameters" else cost.cache_bytes_per_token


def _shares(values: Sequence[float | None]) -> tuple[Cell, ...]:
    base = values[0] or 1.0
    return tuple(
        Cell(Line(DASH, "quiet") if value is None else Line(share(value / base)), value)
        for value in values
    )


def _decode(view: View, arm: str, base: float) -> Cell:
    """The time of a decode step over the baseline's, from interleaved rounds if it has any."""
    ratio, own = view.decode_ratio(arm), view.measurements.get(arm)
    step = own.decode_p50_s if own else None
    value = ratio.value if ratio else step / base if step else None
    if value is None:
        return Cell(Line(DASH, "quiet"), None)
    return Cell(Line(f"×{number(value, 2)}"), value)
