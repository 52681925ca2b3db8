"""The study as one self-contained HTML file: no network, no script, no second file."""

import statistics
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.experiment import from_json
from qkvbench.reports.parts import figures as figures
from qkvbench.reports.parts.analyses import analyses, measure_descriptions
from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.findings import findings
from qkvbench.reports.parts.formatting import (
    change,
    decimals,
    margin_text,
    metric_text,
    number,
    p_text,
    plural,
    share,
    spans,
)
from qkvbench.reports.parts.registered import predictions
from qkvbench.reports.parts.table import caption, columns, failures, legend, nickname
from qkvbench.reports.parts.tuning import rate_tables
from qkvbench.results.critical import LEVEL
from qkvbench.results.record import Record
from qkvbench.results.stats import (
    CHANCE_LEVEL,
    COMPARISONS,
    POWER,
    Comparison,
    Tally,
    Verdict,
    verdicts,
)
from qkvbench.results.view import TaskView, View

ABOUT = "one self-contained web page: the table, the plots, the words and every run"
SUFFIX = "html"

_FOLDER = Path(__file__).parent


def render(view: View) -> str:
    """The whole page. Text from records is escaped; figures are inline SVG."""
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
    return environment.get_template("_page.html").render(
        view=view,
        # Our own file, not a record's text.
        css=Markup((_FOLDER / "_page.css").read_text(encoding="utf-8")),
        columns=columns(view),
        caption=caption(view),
        legend=legend(view),
        predictions=predictions(view),
        findings=findings(view),
        limits=limits(view),
        cache=_plots(view, figures.against_cache),
        parameters=_plots(view, figures.against_parameters),
        curves=_plots(view, figures.curves),
        analyses=analyses(view),
        measure_descriptions=measure_descriptions(),
        rate_tables=rate_tables(view),
        color_class=figures.color_class,
        anchors={task.name: index for index, task in enumerate(view.tasks)},
        nickname=nickname,
        change=change,
        number=number,
        plural=plural,
        decimals=decimals,
        failures=failures(view),
        counted=_counted,
        verdicts=_verdicts,
        margin_text=margin_text,
        train_s=_train_s,
        execution=_execution,
        level=LEVEL,
        comparisons=COMPARISONS,
        p_text=p_text,
        chance_level=CHANCE_LEVEL,
        power=POWER,
    )


def equations(text: str) -> Markup:
    """The text with its equations as `<code>` elements."""
    return Markup("").join(
        Markup(f"<code>{escape(part)}</code>") if code else escape(part)
        for part, code in spans(text)
    )


def _plots(view: View, draw: Callable[[TaskView], Markup | None]) -> list[tuple[TaskView, Markup]]:
    figures_by_task = [(task, draw(task)) for task in view.tasks]
    return [(task, figure) for task, figure in figures_by_task if figure is not None]


def _verdicts(task: TaskView) -> dict[str, Verdict]:
    return verdicts(task.result, task.metric.better)


def _counted(result: Comparison | Tally) -> bool:
    return isinstance(result, Tally)


def _execution(run: Record) -> str:
    """Precision and other execution options of the run, in words."""
    return from_json(run.experiment).execution


def _train_s(task: TaskView, arm: str) -> float | None:
    """The median training time of a run of the arm; None if none was observed."""
    times = [run.observed.train_s for run in task.cell(arm).runs if run.observed is not None]
    return statistics.median(times) if times else None
