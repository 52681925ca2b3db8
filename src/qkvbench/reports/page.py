"""The study as one self-contained HTML file: no network and no second file.

The page is complete without its script, which lets the reader choose what the picture shows,
compare two arms and sort the table.
"""

import statistics
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports.parts import picture as pictures
from qkvbench.reports.parts.analyses import Analyses, analyses, measure_descriptions
from qkvbench.reports.parts.answer_table import ONE_SIDED, answer_columns
from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.curves import curves
from qkvbench.reports.parts.explore import all_pairs, document, embedded
from qkvbench.reports.parts.figure_style import figure_style
from qkvbench.reports.parts.findings import findings
from qkvbench.reports.parts.formatting import (
    bounds,
    change,
    decimals,
    margin_text,
    metric_text,
    number,
    p_text,
    plural,
    share,
    signed,
    spans,
)
from qkvbench.reports.parts.headline import basis, headline, registered_sentence
from qkvbench.reports.parts.registered import predictions
from qkvbench.reports.parts.svg import color_class
from qkvbench.reports.parts.table import caption, failures, legend, nickname
from qkvbench.reports.parts.tuning import rate_tables
from qkvbench.results.critical import LEVEL
from qkvbench.results.record import Record
from qkvbench.results.stats import (
    CERTAIN,
    CHANCE_LEVEL,
    COMPARISONS,
    POWER,
    Comparison,
    Tally,
)
from qkvbench.results.view import TaskView, View

ABOUT = "one self-contained web page: the answer, the picture, the table and every run"
SUFFIX = "html"

LARGEST_BYTES = 2_000_000
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class _Parts:
    """The folded parts that grow with the study; the largest are left out of too large a page."""

    curves: Sequence[tuple[TaskView, Markup]]
    layers: Sequence[Analyses]
    runs: bool = True
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfinished:
    """The state of a study that is running, and how often its page loads itself again."""

    state: str
    reload_s: int


def render(view: View, unfinished: Unfinished | None = None) -> str:
    """The whole page. Text from records is escaped; figures are inline SVG."""
    drawn = [(task, curves(task)) for task in view.tasks]
    every = _Parts([(task, made) for task, made in drawn if made is not None], analyses(view))
    fewer = [
        every,
        replace(every, curves=(), left_out=("learning curves",)),
        _Parts((), (), left_out=("learning curves", "measures of layers")),
    ]
    data = embedded(document(view, figure_style()))
    for parts in fewer:
        html = _html(view, parts, data, unfinished)
        if len(html.encode()) <= LARGEST_BYTES:
            return html
    left_out = ("learning curves", "measures of layers", "the score of every run")
    return _html(view, _Parts((), (), runs=False, left_out=left_out), data, unfinished)


def equations(text: str) -> Markup:
    """The text with its equations as `<code>` elements."""
    return Markup("").join(
        Markup(f"<code>{escape(part)}</code>") if code else escape(part)
        for part, code in spans(text)
    )


def _file(name: str) -> Markup:
    """One of our own files, whose text needs no escape."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _html(view: View, parts: _Parts, data: Markup, unfinished: Unfinished | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "equations": equations,
        "bytes": bytes_text,
        "count": count_text,
        "seconds": seconds_text,
        "metric": metric_text,
        "share": share,
    }
    script = _file("_page.js")
    answer, _, rest = headline(view).partition("; ")
    columns = answer_columns(view)
    return environment.get_template("_page.html").render(
        view=view,
        unfinished=unfinished,
        css=_file("_page.css") + _file("_figure.css"),
        script=script,
        script_hash=b64encode(sha256(f"\n{script}\n".encode()).digest()).decode(),
        data=data,
        answer=answer,
        rest=rest,
        registered=registered_sentence(view),
        basis=basis(view),
        picture=_first_pictures(view),
        picture_legend=pictures.LEGEND,
        axes=pictures.AXES,
        all_pairs=all_pairs(view),
        columns=columns,
        one_sided=ONE_SIDED if any(c.one_sided for each in columns for c in each.cells) else "",
        caption=caption(view),
        legend=legend(view),
        predictions=predictions(view),
        findings=findings(view),
        limits=limits(view),
        curves=parts.curves,
        analyses=parts.layers,
        every_run=parts.runs,
        left_out=parts.left_out,
        measure_descriptions=measure_descriptions(),
        rate_tables=rate_tables(view),
        color_class=color_class,
        anchors={task.name: index for index, task in enumerate(view.tasks)},
        nickname=nickname,
        change=change,
        number=number,
        signed=signed,
        bounds=bounds,
        plural=plural,
        decimals=decimals,
        failures=failures(view),
        counted=_counted,
        margin_text=margin_text,
        train_s=_train_s,
        execution=_execution,
        first_run=_first_run,
        runs_by_seed=_runs_by_seed,
        level=LEVEL,
        certain=f"{CERTAIN:.4f}".rstrip("0"),
        comparisons=COMPARISONS,
        p_text=p_text,
        chance_level=CHANCE_LEVEL,
        power=POWER,
    )


def _first_pictures(view: View) -> list[Markup]:
    """The picture that is shown first: for a screen and for a phone; empty if there is none."""
    choice = pictures.default_choice(view)
    if choice is None:
        return []
    made = (pictures.picture(view, *choice, size) for size in (pictures.WIDE, pictures.PHONE))
    return [pictures.svg(each) for each in made if each is not None]


def _counted(result: Comparison | Tally) -> bool:
    return isinstance(result, Tally)


def _execution(run: Record) -> str:
    """Precision and other execution options of the run, in words."""
    return run.parsed_experiment.execution


def _first_run(task: TaskView) -> Record:
    """A run of the task: a task without any is not in the view."""
    return next(run for cell in task.cells for run in cell.runs)


def _runs_by_seed(task: TaskView, arm: str) -> list[Record | None]:
    """The arm's run of each seed of the task; None if there is no record."""
    runs = {run.seed: run for run in task.cell(arm).runs}
    return [runs.get(seed) for seed in task.result.seeds]


def _train_s(task: TaskView, arm: str) -> float | None:
    """The median training time of a run of the arm; None if none was observed."""
    times = [run.observed.train_s for run in task.cell(arm).runs if run.observed is not None]
    return statistics.median(times) if times else None
