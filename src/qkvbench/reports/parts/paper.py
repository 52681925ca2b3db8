"""The files of a study for a paper: its pictures as SVG, and its table as CSV, LaTeX, Markdown."""

import re

from markupsafe import Markup

from qkvbench.reports.parts.answer_table import csv_text, latex, markdown
from qkvbench.reports.parts.figure_style import figure_style
from qkvbench.reports.parts.gaps import gaps
from qkvbench.reports.parts.picture import AXES, COLUMN, PAGE, Size, picture, svg
from qkvbench.reports.parts.svg import tag
from qkvbench.results.across import CostKind
from qkvbench.results.view import TaskView, View

# A column of a paper in two columns, and its whole width.
SIZES = {"column": COLUMN, "page": PAGE}


def files(view: View) -> dict[str, str]:
    """The text of each file by its name: every task's gaps and costs, at two widths."""
    style = figure_style()
    made = {"table.csv": csv_text(view), "table.tex": latex(view), "table.md": markdown(view)}
    for index, task in enumerate(view.tasks):
        for width, size in SIZES.items():
            drawings = {kind: _against(view, task, kind, size) for kind in AXES}
            for kind, drawn in {**drawings, "gaps": gaps(task, size)}.items():
                if drawn is not None:
                    name = f"{_stem(task.label)}-{kind}-{width}.svg"
                    name = f"{index}-{name}" if name in made else name
                    made[name] = standalone(*drawn, style)
    return made


def _against(view: View, task: TaskView, kind: CostKind, size: Size) -> tuple[Markup, Size] | None:
    drawn = picture(view, task, kind, size)
    return None if drawn is None else (svg(drawn), size)


def standalone(drawn: Markup, size: Size, style: str) -> str:
    """A drawing as an SVG file, as large as it will be printed."""
    width, height = f"{size.width:g}pt", f"{size.height:g}pt"
    sheet = tag("style", Markup(style))
    text = str(drawn).replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" ', 1
    )
    text = text.replace(" viewBox", f' height="{height}" viewBox', 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text.replace(">", f">{sheet}", 1)}\n'


def _stem(name: str) -> str:
    """The name of a task as a part of a file's name: it may be a path, and is not trusted."""
    return re.sub(r"[^\w.@-]+", "_", name).strip(".")[:80] or "task"
