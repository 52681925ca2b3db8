"""The answer of a study in a few lines: a sentence, one line for each arm, and what it rests on."""

from collections.abc import Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qkvbench.cost.units import count_text
from qkvbench.reports.full import STYLES, styled
from qkvbench.reports.parts.answer_table import AnswerColumn, answer_columns
from qkvbench.reports.parts.formatting import printable
from qkvbench.reports.parts.headline import basis, headline, registered_sentence
from qkvbench.reports.parts.table import failures, nickname
from qkvbench.results.view import View

ABOUT = "the answer in a few lines: what `report` prints"
SUFFIX = "txt"

WIDTH = 100


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
    console.print()
    if outcome := registered_sentence(view):
        console.print(styled(outcome))
    console.print(styled(headline(view)))
    columns = answer_columns(view)
    labels = _labels(view, columns, console.width)
    for part in _parts(columns, labels, console.width):
        console.print(_table(part, labels))
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


def _parts(
    columns: Sequence[AnswerColumn], labels: Sequence[Text], width: int
) -> list[list[AnswerColumn]]:
    """The columns split into as few tables as fit; each has the arms."""
    left = max(len(label.plain) for label in labels) + 2
    parts: list[list[AnswerColumn]] = [[]]
    used = left
    for column in columns:
        size = _width(column)
        if parts[-1] and used + size > width:
            parts.append([])
            used = left
        parts[-1].append(column)
        used += size
    return parts


def _width(column: AnswerColumn) -> int:
    return 2 + max(len(text) for text in (*column.head, *(cell.line.text for cell in column.cells)))


def _labels(view: View, columns: Sequence[AnswerColumn], width: int) -> list[Text]:
    """The arms, with their names in the catalogue if all columns fit beside them."""
    longest = max(len(each) + len(nickname(each) or "") for each in view.arms)
    named = longest + 4 + sum(map(_width, columns)) <= width
    return [_label(arm, nickname(arm) if named else None) for arm in view.arms]


def _label(arm: str, name: str | None) -> Text:
    label = Text(printable(arm), style="bold")
    return label if name in (None, arm) else label + Text(f"  {name}", style="dim")


def _table(part: Sequence[AnswerColumn], labels: Sequence[Text]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in part:
        # As a Text: a task's name may be a path with brackets, which are not markup.
        head = Text("\n".join(map(printable, column.head)))
        table.add_column(head, justify="right", no_wrap=True)
    for row, label in enumerate(labels):
        lines = [column.cells[row].line for column in part]
        texts = [Text(printable(line.text), style=STYLES[line.tone]) for line in lines]
        table.add_row(label, *texts)
    return table
