"""The study as a table with every interval, and all of its findings and limits in sentences."""

from collections.abc import Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.findings import findings
from qkvbench.reports.parts.formatting import printable, spans
from qkvbench.reports.parts.registered import predictions
from qkvbench.reports.parts.table import Column, Lines, Tone, caption, columns, failures, legend
from qkvbench.results.view import View

ABOUT = "the main table with its intervals, and what it shows, as plain text"
SUFFIX = "txt"

WIDTH = 120
STYLES: dict[Tone, str] = {
    "plain": "",
    "quiet": "dim",
    "strong": "bold",
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "failed": "yellow",
}


def render(view: View) -> str:
    """The table and the words, without colours, 120 columns wide."""
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, legacy_windows=False, force_jupyter=False
    )
    print_report(view, console)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_report(view: View, console: Console) -> None:
    """The same on a console."""
    print_table(view, console)
    print_words(view, console)


def print_table(view: View, console: Console) -> None:
    """The main table; split into several tables if the console is narrow."""
    console.print(styled(f"{view.name} · baseline `{view.baseline}`"), style="bold")
    for line in caption(view):
        console.print(styled(line), style="dim")
    first, *others = columns(view)
    for part in _parts(first, others, console.width):
        console.print(_table((first, *part), console.width))
    for line in legend(view):
        console.print(styled(line), style="dim")
    for line in failures(view):
        console.print(styled(line), style="yellow")


def print_words(view: View, console: Console) -> None:
    """The hypotheses that were registered, the findings of the study, and its limits."""
    parts = {
        "What was predicted": predictions(view),
        "What this shows": findings(view),
        "What it cannot tell": limits(view),
    }
    for title, notes in parts.items():
        if not notes:
            continue
        console.print()
        console.print(Text(title, style="bold underline"))
        for note in notes:
            hanging = Table.grid(padding=(0, 1))
            topic = styled(f"{note.topic}: ")
            topic.stylize("bold cyan")
            hanging.add_row("•", topic + styled(note.text))
            console.print(Padding(hanging, (0, 0, 0, 1)))


def styled(line: str) -> Text:
    """The line with its equations in bold."""
    return Text.assemble(*((part, "bold" if code else "") for part, code in spans(printable(line))))


def _parts(first: Column, others: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns split into as few tables as fit, each of which also has the first column."""
    parts: list[list[Column]] = [[]]
    for column in others:
        if parts[-1] and _width((first, *parts[-1], column), gap=1) > width:
            parts.append([])
        parts[-1].append(column)
    return parts


def _width(part: Sequence[Column], *, gap: int) -> int:
    texts = [
        (*column.head, *(line.text for cell in column.cells for line in cell)) for column in part
    ]
    return sum(max(len(text) for text in column) for column in texts) + gap * (len(part) + 1)


def _table(part: Sequence[Column], width: int) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1) if _width(part, gap=2) <= width else 0,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in part:
        # As a Text: a task's name may be a path with brackets, which are not markup.
        head = Text("\n".join(printable(line) for line in column.head))
        table.add_column(head, justify="right" if column.numeric else "left", no_wrap=True)
    rows = list(zip(*(column.cells for column in part), strict=True))
    for index, row in enumerate(rows):
        table.add_row(*(_cell(lines) for lines in row))
        if index < len(rows) - 1:
            table.add_row()
    return table


def _cell(lines: Lines) -> Text:
    return Text("\n").join(Text(printable(line.text), style=STYLES[line.tone]) for line in lines)
