"""The answer of a study in a few lines: a sentence, one line for each arm, and what it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qkvbench.cost.units import count_text
from qkvbench.reports.full import STYLES, styled
from qkvbench.reports.parts.answer_table import ONE_SIDED, PARAMETERS, AnswerColumn, answer_columns
from qkvbench.reports.parts.formatting import Note, plural, printable
from qkvbench.reports.parts.headline import (
    cautions,
    controls_sentence,
    headline,
    losing,
    registered_sentence,
)
from qkvbench.reports.parts.table import failures, nickname
from qkvbench.results.view import View

ABOUT = "the answer in a few lines: what `report` prints"
SUFFIX = "txt"

WIDTH = 100
# The arms with the fewest losses, if there are more.
MOST_ARMS = 16
# Of all tables together if the columns need several; tasks without room are named.
MOST_LINES = 40
# The names of tasks above columns that are narrower than them.
LEVELS = 3

SEEN_FROM = "loss seen from"


def render(view: View) -> str:
    """The answer, the table and its basis, without colours, 100 columns wide."""
    file = StringIO()
    # In a notebook, too, what is printed goes into the file.
    console = Console(
        file=file, width=WIDTH, color_system=None, legacy_windows=False, force_jupyter=False
    )
    print_answer(view, console)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_answer(view: View, console: Console) -> None:
    """The same on a console; several tables if it is narrow."""
    console.print(styled(_title(view)), style="bold")
    for sentence in (registered_sentence(view), headline(view), controls_sentence(view)):
        if sentence:
            console.print(styled(sentence))
    arms = _shown_arms(view)
    layout = _layout(view, arms, console.width)
    for part in layout.parts:
        console.print()
        for line in _table(part, layout):
            console.print(line, no_wrap=True, overflow="crop", crop=False)
    console.print()
    for line in failures(view):
        console.print(styled(line), style="yellow")
    for note in [*_left_over(view, arms, layout), *cautions(view)]:
        hanging = Table.grid(padding=(0, 1))
        topic = styled(f"{note.topic}: ")
        topic.stylize("bold")
        hanging.add_row(topic + styled(note.text))
        console.print(Padding(hanging, (0, 0, 0, 1)))
    console.print(
        styled(
            " ▼ ▲ certain, ▽ △ likely; ≈ ~ within the margin, certain and likely"
            f"{_interval(layout)}. --full has it all."
        ),
        style="dim",
    )


def _title(view: View) -> str:
    sizes = sorted(cost.total_parameters for task in view.tasks for cost in task.costs.values())
    steps = sorted({task.steps for task in view.tasks})
    parts = [view.name, f"{plural(len(view.arms) - 1, 'arm')} against `{view.baseline}`"]
    if sizes:
        seeds = sorted({len(task.result.seeds) for task in view.tasks})
        parts.append(f"{seeds[0]} to {seeds[-1]} seeds" if seeds[1:] else plural(seeds[0], "seed"))
        parts.append(f"up to {count_text(sizes[-1])} parameters and {steps[-1]:,} steps")
    return " · ".join(parts)


def _shown_arms(view: View) -> list[int]:
    """The places of the arms that the table has: all, or those with the fewest losses."""
    if len(view.arms) <= MOST_ARMS:
        return list(range(len(view.arms)))
    losses = losing(view)
    kept = [arm for arm in view.arms if arm not in view.candidates][:MOST_ARMS]
    # Those that are not complete come last; of arms with as many losses the study's first.
    others = sorted(view.candidates, key=lambda arm: (arm not in losses, len(losses.get(arm, ()))))
    kept += others[: MOST_ARMS - len(kept)]
    return [place for place, arm in enumerate(view.arms) if arm in kept]


@dataclass(frozen=True)
class _Layout:
    """The tables that fit, the arms that they have, and the tasks without room."""

    labels: tuple[Text, ...]
    rows: tuple[int, ...]
    parts: tuple[tuple[AnswerColumn, ...], ...]
    left_out: tuple[str, ...]
    intervals: bool

    def text(self, column: AnswerColumn, row: int) -> str:
        """A cell's text."""
        cell = column.cells[row]
        return printable(cell.line.text if self.intervals else cell.short)

    def size(self, column: AnswerColumn) -> int:
        """The width of a column with the gap before it; a task's name may be raised instead."""
        whole = self.intervals or column.task is None
        head = map(printable, column.head) if whole else (column.unit,)
        texts = [self.text(column, row) for row in self.rows]
        return self.gap + max(map(cell_len, (*head, column.seen_from, *texts)))

    @property
    def left(self) -> int:
        """The width of the arms."""
        return max(cell_len(label.plain) for label in self.labels)

    @property
    def gap(self) -> int:
        """The space before a column."""
        return 2 if self.intervals else 1


def _interval(layout: _Layout) -> str:
    """The meaning of ± in the tables, if they have it."""
    if not layout.intervals:
        return ""
    shown = [column.cells[row] for part in layout.parts for column in part for row in layout.rows]
    one_sided = f" ({ONE_SIDED})" if any(cell.one_sided for cell in shown) else ""
    return f"; ± half of a 95% interval{one_sided}"


def _layout(view: View, arms: Sequence[int], width: int) -> _Layout:
    """One table with intervals if it fits, else one without, else several or fewer columns."""
    columns = answer_columns(view)
    names = [view.arms[place] for place in arms]
    few = [each for each in columns if each.head[0] != PARAMETERS]
    for named, intervals, chosen in (
        (True, True, columns),
        (False, True, columns),
        (False, False, columns),
        (False, False, few),
    ):
        labels = tuple(_label(arm, nickname(arm) if named else None) for arm in names)
        if any(column.seen_from for column in columns):
            labels = (*labels, Text(SEEN_FROM, style="dim"))
        layout = _Layout(labels, tuple(arms), (tuple(chosen),), (), intervals)
        if 1 + layout.left + sum(map(layout.size, chosen)) <= width:
            return layout
    return _split(view, layout, width)


def _split(view: View, layout: _Layout, width: int) -> _Layout:
    """The columns in tables that fit, as many as the lines allow."""
    compared = {task.name: task.result.standing == "compared" for task in view.tasks}
    # Those of which nothing can be said go first.
    order = sorted(compared, key=lambda name: not compared[name])
    most = max(1, MOST_LINES // (len(layout.labels) + LEVELS + 3))
    (columns,) = layout.parts
    left_out: list[str] = []
    while True:
        shown = [each for each in columns if each.task not in left_out]
        parts = _parts(layout, shown, width)
        if len(parts) <= most or len(order) < 2:
            return replace(
                layout,
                parts=tuple(parts),
                left_out=tuple(name for name in compared if name in left_out),
            )
        left_out.append(order.pop())


def _parts(
    layout: _Layout, columns: Sequence[AnswerColumn], width: int
) -> list[tuple[AnswerColumn, ...]]:
    parts: list[tuple[AnswerColumn, ...]] = [()]
    used = 1 + layout.left
    for column in columns:
        size = layout.size(column)
        if parts[-1] and used + size > width:
            parts.append(())
            used = 1 + layout.left
        parts[-1] = (*parts[-1], column)
        used += size
    return parts


def _label(arm: str, name: str | None) -> Text:
    label = Text(printable(arm), style="bold")
    return label if name in (None, arm) else label + Text(f"  {name}", style="dim")


def _table(part: Sequence[AnswerColumn], layout: _Layout) -> list[Text]:
    """The lines of one table: the tasks, the metrics, a rule, the arms, what would be seen."""
    sizes = [layout.size(column) for column in part]
    first = 1 + layout.left
    lines = [Text(line, style="bold") for line in _heads(part, sizes, first)]
    units = [printable(each.head[1] if layout.intervals else each.unit) for each in part]
    lines.append(Text(" " * first + "".join(map(_right, units, sizes)), style="bold"))
    lines.append(Text(f" {'─' * (first - 1 + sum(sizes))}"))
    for label, row in zip(layout.labels, layout.rows, strict=False):
        cells = [
            Text(_right(layout.text(column, row), size), style=STYLES[column.cells[row].line.tone])
            for column, size in zip(part, sizes, strict=True)
        ]
        lines.append(Text.assemble(" ", label, " " * (first - 1 - cell_len(label.plain)), *cells))
    if any(column.seen_from for column in part):
        cells = "".join(map(_right, (column.seen_from for column in part), sizes))
        label = set_cell_size(layout.labels[-1].plain, first - 1)
        lines.append(Text(f" {label}{cells}", style="dim"))
    return lines


def _heads(part: Sequence[AnswerColumn], sizes: Sequence[int], first: int) -> list[str]:
    """The names above their columns, which end where they do; raised if they would overlap."""
    levels = [""] * LEVELS
    end = first
    for column, size in zip(part, sizes, strict=True):
        end += size
        name = printable(column.head[0])
        free = [end - cell_len(line) - bool(line) for line in levels]
        level = next((each for each, room in enumerate(free) if room >= cell_len(name)), None)
        if level is None:
            level = max(range(LEVELS), key=lambda each: free[each])
            name = f"{set_cell_size(name, free[level] - 1)}…"
        levels[level] += _right(name, end - cell_len(levels[level]))
    return [line for line in reversed(levels) if line]


def _right(text: str, size: int) -> str:
    return " " * (size - cell_len(text)) + text


def _left_over(view: View, arms: Sequence[int], layout: _Layout) -> list[Note]:
    """The arms and tasks that the table leaves out."""
    notes: list[Note] = []
    others = [arm for place, arm in enumerate(view.arms) if place not in arms]
    compared = any(task.result.standing == "compared" for task in view.tasks)
    judged = losing(view)
    whys = {
        "lose on as many tasks or more" if compared else "are not compared either": [
            arm for arm in others if arm in judged
        ],
        "are not complete": [arm for arm in others if arm not in judged],
    }
    said = [f"{plural(len(own), 'other arm')}, which {why}" for why, own in whys.items() if own]
    if said:
        notes.append(Note("Not shown", f"{'; '.join(said)}."))
    if layout.left_out:
        tasks = ", ".join(map(view.label, layout.left_out))
        notes.append(Note("Not shown", f"{tasks}."))
    return notes
