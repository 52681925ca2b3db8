"""The table of the answer: one line for each arm, as values, and as CSV, LaTeX and Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports.parts.formatting import (
    decimals,
    is_one_sided,
    metric_text,
    number,
    plural,
    printable,
    share,
    signed,
    size,
    spreadsheet_text,
    value_and_half,
)
from qkvbench.reports.parts.table import DASH, SYMBOLS, TONES, Line, nickname
from qkvbench.results.across import has_attention
from qkvbench.results.stats import Comparison, Tally, Verdict
from qkvbench.results.view import TaskView, View

PARAMETERS = "params"
# Of a cell that is `one_sided`.
ONE_SIDED = "its side towards zero if half would reach beyond"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the same without its interval, and the number to sort its column by.

    ``one_sided``: not half of the interval is beside the difference, but its side towards zero.
    """

    line: Line
    key: float | None
    short: str
    one_sided: bool = False


@dataclass(frozen=True)
class AnswerColumn:
    """A head of two lines, and a cell for each arm; `task` is None for a cost.

    `unit` is the second line in at most six letters, `seen_from` the smallest loss that would have
    been seen as likely.
    """

    head: tuple[str, str]
    cells: tuple[Cell, ...]
    unit: str
    task: str | None = None
    seen_from: str = ""


def answer_columns(view: View) -> tuple[AnswerColumn, ...]:
    """The tasks, then cache, parameters and decode time."""
    tasks = [
        AnswerColumn(
            _head(task),
            tuple(_cell(task, arm) for arm in view.arms),
            _unit(task),
            task.name,
            _seen_from(task),
        )
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
    lines = [
        list(map(_markdown, heads)),
        ["---", *["---:"] * (len(heads) - 1)],
        *([_markdown_code(arm), *map(_markdown, rest)] for arm, *rest in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown(text: str) -> str:
    """A cell's text, which ends no cell and is no HTML."""
    return escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _markdown_code(text: str) -> str:
    """An equation, of which no two tildes strike out what is between them."""
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


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
        return task.label, "solved, step"
    arrow = "↑" if task.metric.better == "higher" else "↓"
    return task.label, f"{_METRICS.get(task.metric.name, metric_text(task.metric))} {arrow}"


# Of six letters with their arrow, for the table that leaves the intervals out.
_UNITS = {
    "accuracy": "acc.",
    "balanced_accuracy": "bal.",
    "bits_per_byte": "bits",
    "bits_per_token": "bits",
    "recall_at_5": "R@5",
    "bleu": "BLEU",
}


def _unit(task: TaskView) -> str:
    if isinstance(task.result, Tally):
        return "solved"
    arrow = "↑" if task.metric.better == "higher" else "↓"
    return f"{_UNITS.get(task.metric.name, metric_text(task.metric)[:4])} {arrow}"


def _seen_from(task: TaskView) -> str:
    result = task.result
    if isinstance(result, Tally) or result.detectable is None:
        return ""
    return _short(size(result.detectable, decimals(result)))


def _cell(task: TaskView, arm: str) -> Cell:
    result = task.result
    verdict = task.verdicts.get(arm, "not distinguishable")
    symbol, tone = SYMBOLS.get(verdict, ""), TONES.get(verdict, "quiet")
    if arm == result.baseline:
        tone = "plain"
    match result:
        case Comparison(means=means):
            key = means[arm].value if arm in means else None
            line = Line(symbol + _score(result, arm, verdict), tone)
            short = symbol.strip() + _score_alone(result, arm)
            if verdict == "diverged":
                line = Line(f"{symbol}{result.diverged[arm]} diverged", tone)
                short = f"{symbol.strip()}div."
        case Tally(counts=counts):
            count = counts.get(arm)
            # Sooner is better among arms that solve as many.
            key = None if count is None else count.solved - (count.step or 0) * 1e-9
            step = "" if count is None or count.step is None else f", {count.step:.0f}"
            solved = DASH if count is None else f"{count.solved}/{count.seeds}"
            line, short = Line(symbol + solved + step, tone), symbol.strip() + solved
    if arm in result.incomplete:
        scores = len(task.cell(arm).scores)
        line = Line(f"{scores} of {plural(len(result.seeds), 'seed')}", "failed")
        short = f"{scores} of {len(result.seeds)}"
    own = result.differences.get(arm) if isinstance(result, Comparison) else None
    return Cell(line, key, short, one_sided=own is not None and is_one_sided(own, verdict))


def _score(result: Comparison, arm: str, verdict: Verdict) -> str:
    """The same as `_score_alone`, with half of the difference's interval if it has one."""
    each = result.differences.get(arm)
    if each is None:
        return _score_alone(result, arm)
    value, half = value_and_half(each, decimals(result), verdict)
    return f"{_short(value)} ±{_short(half)}" if half else _short(value)


def _score_alone(result: Comparison, arm: str) -> str:
    """The baseline's score, another arm's difference; its own score if nothing is compared."""
    places = decimals(result)
    each, mean = result.differences.get(arm), result.means.get(arm)
    if each is not None:
        return _short(signed(each.value, places))
    return DASH if mean is None else _short(number(mean.value, places))


def _short(text: str) -> str:
    """A number without its leading zero."""
    return text.replace("0.", ".", 1) if text.lstrip("+−").startswith("0.") else text


def _cost_columns(view: View) -> list[AnswerColumn]:
    base = view.costs.get(view.baseline)
    columns: list[AnswerColumn] = []
    if base is not None and base.cache_bytes_per_token:
        sizes = [_known(view, arm, "cache") for arm in view.arms]
        cells = tuple(
            Cell(Line("state", "quiet"), 0.0, "state") if size == 0 and has_attention(arm) else cell
            for arm, size, cell in zip(view.arms, sizes, _shares(sizes), strict=True)
        )
        columns.append(_cost("cache", bytes_text(base.cache_bytes_per_token), cells))
    if base is not None:
        counts = [_known(view, arm, "parameters") for arm in view.arms]
        columns.append(_cost(PARAMETERS, count_text(base.total_parameters), _shares(counts)))
    first = view.measurements.get(view.baseline)
    if first is not None and first.decode_p50_s:
        cells = tuple(_decode(view, arm, first.decode_p50_s) for arm in view.arms)
        columns.append(_cost("decode", seconds_text(first.decode_p50_s), cells))
    return columns


def _cost(name: str, base: str, cells: tuple[Cell, ...]) -> AnswerColumn:
    return AnswerColumn((name, base), cells, base)


def _known(view: View, arm: str, kind: str) -> float | None:
    cost = view.costs.get(arm)
    if cost is None:
        return None
    return cost.total_parameters if kind == "parameters" else cost.cache_bytes_per_token


def _shares(values: Sequence[float | None]) -> tuple[Cell, ...]:
    base = values[0] or 1.0
    return tuple(
        Cell(Line(DASH, "quiet"), None, DASH)
        if value is None
        else Cell(Line(text := share(value / base)), value, text)
        for value in values
    )


def _decode(view: View, arm: str, base: float) -> Cell:
    """The time of a decode step over the baseline's, from interleaved rounds if it has any."""
    ratio, own = view.decode_ratio(arm), view.measurements.get(arm)
    step = own.decode_p50_s if own else None
    value = ratio.value if ratio else step / base if step else None
    if value is None:
        return Cell(Line(DASH, "quiet"), None, DASH)
    text = f"×{number(value, 2)}"
    return Cell(Line(text), value, text)
