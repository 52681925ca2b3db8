"""The answer of a study in a few lines: a sentence, one line for each arm, and what it rests on."""

from collections.abc import Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qkvbench.cost.units import count_text, seconds_text
from qkvbench.reports.full import STYLES, styled
from qkvbench.reports.parts.formatting import (
    decimals,
    metric_text,
    number,
    plural,
    printable,
    share,
    signed,
    task_text,
)
from qkvbench.reports.parts.headline import basis, headline, registered_sentence
from qkvbench.reports.parts.table import DASH, SYMBOLS, TONES, Line, Tone, failures, nickname
from qkvbench.results.stats import Comparison, Tally, verdicts
from qkvbench.results.view import TaskView, View

ABOUT = "the answer in a few lines: what `report` prints"
SUFFIX = "txt"

WIDTH = 100
# Shorter than `metric_text`, for the head of a column.
METRICS = {
    "balanced_accuracy": "bal. acc.",
    "bits_per_byte": "bits/byte",
    "bits_per_token": "bits/token",
    "recall_at_5": "recall@5",
    "bleu": "BLEU",
}


def render(view: View) -> str:
    """The answer, the table and its basis, without colours, 100 columns wide."""
    file = StringIO()
    print_answer(view, Console(file=file, width=WIDTH, color_system=None, legacy_windows=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_answer(view: View, console: Console) -> None:
    """The same on a console; several tables if it is narrow."""
    console.print(styled(_title(view)), style="bold")
    console.print()
    if outcome := registered_sentence(view):
        console.print(styled(outcome))
    console.print(styled(headline(view)))
    for part in _parts(view, console.width):
        console.print(_table(view, part, console.width))
    for line in failures(view):
        console.print(styled(line), style="yellow")
    for note in basis(view):
        hanging = Table.grid(padding=(0, 1))
        topic = styled(f"{note.topic}: ")
        topic.stylize("bold")
        hanging.add_row(topic + styled(note.text))
        console.print(Padding(hanging, (0, 0, 0, 1)))
    console.print(
        styled(
            " ▼ ▲ certain, ▽ △ likely; ≈ ~ within the margin, certain and likely; ± half of a 95% "
            "interval. --full has it all."
        ),
        style="dim",
    )


def _title(view: View) -> str:
    sizes = sorted(cost.total_parameters for task in view.tasks for cost in task.costs.values())
    steps = sorted({task.steps for task in view.tasks})
    parts = [view.name, f"baseline `{view.baseline}`", f"{len(view.arms) - 1} other arms"]
    if sizes:
        parts.append(f"models to {count_text(sizes[-1])} parameters")
        parts.append(f"{steps[0]:,} to {steps[-1]:,} steps" if steps[1:] else f"{steps[0]:,} steps")
    return " · ".join(parts)


Cells = tuple[tuple[str, ...], list[Line]]


def _columns(view: View) -> list[Cells]:
    """Heads and one line for each arm: the tasks, then cache, parameters and decode time."""
    columns: list[Cells] = [
        (_head(task), [_cell(task, arm) for arm in view.arms]) for task in view.tasks
    ]
    costs = view.costs
    base = costs.get(view.baseline)
    if base is not None and base.cache_bytes_per_token:
        cache = base.cache_bytes_per_token
        sizes = [costs[arm].cache_bytes_per_token if arm in costs else None for arm in view.arms]
        columns.append((("cache", ""), [_share(size, cache) for size in sizes]))
    if base is not None:
        counts = [costs[arm].total_parameters if arm in costs else None for arm in view.arms]
        columns.append((("para-", "meters"), [_share(n, base.total_parameters) for n in counts]))
    first = view.measurements.get(view.baseline)
    if first is not None and first.decode_p50_s:
        cells = [Line(seconds_text(first.decode_p50_s))]
        cells += [_decode(view, arm, first.decode_p50_s) for arm in view.arms[1:]]
        columns.append((("decode", "step"), cells))
    return columns


def _decode(view: View, arm: str, base: float) -> Line:
    """The time of a decode step over the baseline's, from interleaved rounds if it has any."""
    ratio, own = view.decode_ratio(arm), view.measurements.get(arm)
    if ratio is not None:
        return Line(f"×{number(ratio.value, 2)}")
    if own is None or own.decode_p50_s is None:
        return Line(DASH, "quiet")
    return Line(f"×{number(own.decode_p50_s / base, 2)}")


def _head(task: TaskView) -> tuple[str, str]:
    arrow = "↑" if task.metric.better == "higher" else "↓"
    if isinstance(task.result, Tally):
        return task_text(task.name), "solved, step"
    metric = METRICS.get(task.metric.name, metric_text(task.metric))
    return task_text(task.name), f"{metric} {arrow}"


def _cell(task: TaskView, arm: str) -> Line:
    result = task.result
    seeds = plural(len(result.seeds), "seed")
    if arm in result.incomplete:
        return Line(f"{len(task.cell(arm).scores)} of {seeds}", "failed")
    verdict = verdicts(result, task.metric.better).get(arm, "not distinguishable")
    symbol, tone = SYMBOLS.get(verdict, ""), TONES.get(verdict, "quiet")
    if isinstance(result, Tally):
        count = result.counts.get(arm)
        if count is None:
            return Line(DASH, "quiet")
        step = "" if count.step is None else f", {count.step:.0f}"
        tone = "plain" if arm == result.baseline else tone
        return Line(f"{symbol}{count.solved}/{count.seeds}{step}", tone)
    if verdict == "diverged":
        return Line(f"{symbol}{result.diverged[arm]} diverged", tone)
    return _score(result, arm, symbol, tone)


def _score(result: Comparison, arm: str, symbol: str, tone: Tone) -> Line:
    """The baseline's score, another arm's difference; its own score if nothing is compared."""
    places = decimals(result)
    each = result.differences.get(arm)
    if each is None:
        mean = result.means.get(arm)
        return Line(DASH, "quiet") if mean is None else Line(_short(number(mean.value, places)))
    text = symbol + _short(signed(each.value, places))
    if each.low is not None and each.high is not None:
        text += f" ±{_short(number((each.high - each.low) / 2, places))}"
    return Line(text, tone)


def _short(text: str) -> str:
    """A number without its leading zero."""
    return text.replace("0.", ".", 1) if text.lstrip("+−").startswith("0.") else text


def _share(value: float | None, base: float) -> Line:
    return Line(DASH, "quiet") if value is None else Line(share(value / base))


def _parts(view: View, width: int) -> list[list[Cells]]:
    """The columns split into as few tables as fit; each has the arms."""
    columns = _columns(view)
    sizes = [
        2 + max(len(text) for text in (*head, *(cell.text for cell in cells)))
        for head, cells in columns
    ]
    left = max(len(_label(view, arm, width).plain) for arm in view.arms) + 2
    parts: list[list[Cells]] = [[]]
    used = left
    for column, size in zip(columns, sizes, strict=True):
        if parts[-1] and used + size > width:
            parts.append([])
            used = left
        parts[-1].append(column)
        used += size
    return parts


def _label(view: View, arm: str, width: int) -> Text:
    """The arm, with its name in the catalogue if all columns fit beside it."""
    name = nickname(arm)
    label = Text(printable(arm), style="bold")
    columns = sum(
        2 + max(len(text) for text in (*head, *(cell.text for cell in cells)))
        for head, cells in _columns(view)
    )
    longest = max(len(each) + len(nickname(each) or "") for each in view.arms)
    if name in (None, arm) or longest + 4 + columns > width:
        return label
    return label + Text(f"  {name}", style="dim")


def _table(view: View, part: Sequence[Cells], width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head, _ in part:
        # As a Text: a task's name may be a path with brackets, which are not markup.
        table.add_column(Text("\n".join(map(printable, head))), justify="right", no_wrap=True)
    for row, arm in enumerate(view.arms):
        cells = [column[row] for _, column in part]
        texts = [Text(printable(cell.text), style=STYLES[cell.tone]) for cell in cells]
        table.add_row(_label(view, arm, width), *texts)
    return table
