"""The main table as a value: its columns and lines, without style."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.experiment import PRECISIONS
from qkvbench.model import position_written
from qkvbench.reports.parts.formatting import (
    SEPARATOR,
    bounds,
    change,
    decimals,
    machine_text,
    margin_text,
    metric_text,
    number,
    p_text,
    plural,
    seeds_text,
    signed,
)
from qkvbench.results.record import Record
from qkvbench.results.stats import (
    Comparison,
    Count,
    Difference,
    Estimate,
    Tally,
    Verdict,
)
from qkvbench.results.view import Cell, TaskView, View
from qkvbench.variant import parse
from qkvbench.variant.catalogue import name_of

DASH = "–"
# The default `Experiment.execution`; only others are mentioned.
DEFAULT_EXECUTION = PRECISIONS[0]

# The meaning of a line, from which a renderer chooses its colour.
Tone = Literal["plain", "quiet", "strong", "better", "worse", "same", "failed"]

# The symbol of a verdict before its number; an inconclusive one has none.
SYMBOLS: dict[Verdict, str] = {
    "diverged": "▼ ",
    "worse": "▼ ",
    "likely worse": "▽ ",
    "better": "▲ ",
    "likely better": "△ ",
    "matches": "≈ ",
    "likely matches": "~ ",
}
TONES: dict[Verdict, Tone] = {
    "diverged": "worse",
    "worse": "worse",
    "likely worse": "worse",
    "better": "better",
    "likely better": "better",
    "matches": "same",
    "likely matches": "same",
}


@dataclass(frozen=True)
class Line:
    """One line of a cell."""

    text: str
    tone: Tone = "plain"


Lines = tuple[Line, ...]


@dataclass(frozen=True)
class Column:
    """One column: its head, and the lines of each arm in the study's order.

    ``task`` is the task whose runs the cells summarize; None for computed or measured columns.
    """

    head: tuple[str, ...]
    cells: tuple[Lines, ...]
    task: str | None = None
    numeric: bool = True


def columns(view: View) -> tuple[Column, ...]:
    """All columns of the main table, the configuration first."""
    return (
        Column(("Configuration",), tuple(_configuration(arm) for arm in view.arms), numeric=False),
        Column(
            ("Parameters", "(Δ%)"),
            _costs(view, lambda arm: view.costs[arm].total_parameters, lambda n: f"{n:,.0f}"),
        ),
        *(_task_column(task) for task in view.tasks),
        Column(
            ("Cache", "per", "token"),
            _costs(view, lambda arm: view.costs[arm].cache_bytes_per_token, bytes_text),
        ),
        Column(("Decode", "p50"), _latencies(view)),
        Column(("Memory",), _measurement_cells(view, "memory_bytes", bytes_text)),
    )


def caption(view: View) -> list[str]:
    """The initial weights of the runs, and the conditions of the cost columns."""
    return [*_initial_weights(view), *_costs_caption(view)]


def _initial_weights(view: View) -> list[str]:
    """The tasks whose arms do not begin with random weights."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for task in view.tasks:
        if task.init_from is not None:
            by_source[view.label(task.init_from)].append(task.label)
    return [
        f"The arms of {SEPARATOR.join(names)} begin with the weights of their own runs on "
        f"{source}, each with its variant and seed."
        for source, names in by_source.items()
    ]


def _costs_caption(view: View) -> list[str]:
    task = next((task for task in view.tasks if task.name == view.cost_task), None)
    if task is None:
        return []
    tokens = next(iter(task.costs.values())).tokens
    run = next(run for cell in task.cells for run in cell.runs)
    position = position_written(run.parsed_experiment.model.position)
    lines = [
        f"Parameters and cache: computed for the model of {task.label} ({position} "
        f"positions; one forward of {tokens} tokens; all layers; 2 bytes per cached value)."
    ]
    executions = {run.parsed_experiment.execution for run in view.runs} - {DEFAULT_EXECUTION}
    if executions:
        lines.append(f"Runs in {'; '.join(sorted(executions))}.")
    first = next(iter(view.measurements.values()), None)
    if first is not None:
        kernels = sorted({each.kernel for each in view.measurements.values()})
        lines.append(
            f"Decode and memory: observed for the same model on {machine_text(first.machine)}, "
            f"{first.precision}, {plural(first.threads, 'thread')}, "
            f"{plural(first.batch, 'sequence')} at {first.context} cached tokens; "
            f"kernels: {'; '.join(kernels)}."
        )
        if any(view.decode_ratio(arm) for arm in view.arms):
            lines.append(
                f"Below a decode time: its ratio to that of `{view.baseline}`, with the 95% "
                "interval over blocks of interleaved rounds."
            )
    return lines


def legend(view: View) -> list[str]:
    """How to read a task's cell."""
    lines: list[str] = []
    if any(isinstance(task.result, Comparison) for task in view.tasks):
        lines.append(
            "Score ± standard deviation over seeds; below, the difference to "
            f"`{view.baseline}` and its 95% interval, from the seeds of these two arms alone. "
            "▼ worse, ▲ better: certain, even among 40 comparisons; ▽ △ likely: 95% for this one. "
            f"≈ matches (~ likely): within the margin ({_margins(view)}). No symbol: inconclusive."
        )
    if any(isinstance(task.result, Tally) for task in view.tasks):
        lines.append(
            "Solved: seeds that reach the task's threshold; below, how soon, against "
            f"`{view.baseline}`: p of the log-rank test, and the median step. A run that diverged "
            "has not solved it."
        )
    return lines


def _margins(view: View) -> str:
    margins = [
        f"{task.label} {margin_text(task.result.margin, task.metric.unit)}"
        for task in view.tasks
        if isinstance(task.result, Comparison) and task.result.margin is not None
    ]
    return ", ".join(margins) or "none"


def failures(view: View) -> list[str]:
    """The runs that ended without a score, one line for each reason."""
    by_reason: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for run in view.failures:
        # The full reason, which may have a traceback, is in the record.
        first = (run.reason or "").strip().partition("\n")[0]
        by_reason[run.task, run.status, first[:300]].append(run)
    return [
        f"{_runs_text(runs, view)} {status}{': ' if reason else ''}{reason}"
        for (_, status, reason), runs in by_reason.items()
    ]


def _runs_text(runs: Sequence[Record], view: View) -> str:
    task = next(task for task in view.tasks if task.name == runs[0].task)
    if len(runs) == len(task.cells) * len(task.result.seeds):
        return f"{task.label}: all {len(runs)} runs"
    seeds: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        seeds[run.arm].append(str(run.seed))
    arms = [
        f"`{arm}` seed{'' if len(each) == 1 else 's'} {', '.join(each)}"
        for arm, each in seeds.items()
    ]
    return f"{task.label}: {SEPARATOR.join(arms)}"


def nickname(arm: str) -> str | None:
    """The catalogue's name of an equation; None if it has none."""
    try:
        return name_of(parse(arm))
    except ValueError:
        return None


def _configuration(arm: str) -> Lines:
    name = nickname(arm)
    return (Line(arm, "strong"), *((Line(name, "quiet"),) if name else ()))


def _costs(
    view: View, value: Callable[[str], float | None], text: Callable[[float], str]
) -> tuple[Lines, ...]:
    values = [value(arm) if arm in view.costs else None for arm in view.arms]
    return _relative_to_baseline(values, text)


def _measurement_cells(view: View, field: str, text: Callable[[float], str]) -> tuple[Lines, ...]:
    measured = view.measurements
    values = [getattr(measured[arm], field) if arm in measured else None for arm in view.arms]
    return _relative_to_baseline(values, text)


def _latencies(view: View) -> tuple[Lines, ...]:
    """The decode step of each arm; below, its ratio to the baseline's if it was recorded."""
    cells: list[Lines] = []
    for arm, cell in zip(
        view.arms, _measurement_cells(view, "decode_p50_s", seconds_text), strict=True
    ):
        ratio = view.decode_ratio(arm)
        if ratio is None:
            cells.append(cell)
            continue
        lines = [cell[0], Line(f"×{number(ratio.value, 2)}", "quiet")]
        if ratio.low is not None and ratio.high is not None:
            interval = f"[{number(ratio.low, 2)}, {number(ratio.high, 2)}]"
            lines.append(Line(interval, "quiet"))
        cells.append(tuple(lines))
    return tuple(cells)


def _relative_to_baseline(
    values: Iterable[float | None], text: Callable[[float], str]
) -> tuple[Lines, ...]:
    """Each value with its change from the baseline's; a dash if there is none."""
    base, *others = values
    cells: list[Lines] = [(Line(DASH if base is None else text(base)),)]
    for value in others:
        if value is None:
            cells.append((Line(DASH, "quiet"),))
        elif not base:
            cells.append((Line(text(value)),))
        else:
            cells.append((Line(text(value)), Line(change(value, base), "quiet")))
    return tuple(cells)


def _task_column(task: TaskView) -> Column:
    arrow = "↑" if task.metric.better == "higher" else "↓"
    head = (
        task.label,
        f"{metric_text(task.metric)} {arrow}",
        f"chance {f'{task.metric.chance:.2f}'.removeprefix('0')}",
        seeds_text(task.result),
    )
    return Column(head, tuple(_task_lines(task, cell) for cell in task.cells), task.name)


def _task_lines(task: TaskView, cell: Cell) -> Lines:
    arm = cell.variant
    match task.result:
        case Comparison() as result:
            places = decimals(task.result)
            estimate = result.means.get(arm)
            first = () if estimate is None else (_score_line(estimate, places),)
            difference = result.differences.get(arm)
            rest = () if difference is None else _difference_lines(task, arm, difference, places)
            if arm in result.diverged:
                lost = f"{result.diverged[arm]} of {plural(len(result.seeds), 'seed')} diverged"
                rest = (Line(lost, "failed"), *rest)
        case Tally() as result:
            count = result.counts.get(arm)
            first = () if count is None else (Line(f"{count.solved}/{count.seeds} solved"),)
            rest = () if count is None else _count_lines(result, arm, count)
    if arm in result.incomplete:
        return (*first, *_gap_lines(task, cell))
    if result.standing.startswith(("baseline", "attention")) and arm != result.baseline:
        # In two lines, so that the column is no wider than its scores.
        return (*first, *(Line(part, "quiet") for part in result.standing.split(" ", 1)))
    return (*first, *rest)


def _score_line(estimate: Estimate, places: int) -> Line:
    score = number(estimate.value, places)
    if estimate.deviation is None:
        return Line(score)
    return Line(f"{score} ±{number(estimate.deviation, places)}")


def _difference_lines(task: TaskView, arm: str, difference: Difference, places: int) -> Lines:
    verdict = task.verdicts.get(arm, "not distinguishable")
    value = f"{SYMBOLS.get(verdict, '')}{signed(difference.value, places)}"
    tone = TONES.get(verdict, "quiet")
    return (Line(value, tone), Line(bounds(difference, places), tone))


def _count_lines(result: Tally, arm: str, count: Count) -> Lines:
    lines: list[Line] = []
    if count.p is not None:
        verdict = result.verdict(arm) or "not distinguishable"
        text = f"{SYMBOLS.get(verdict, '')}{p_text(count.p)}"
        lines.append(Line(text, TONES.get(verdict, "quiet")))
    if count.step is not None:
        lines.append(Line(f"step {count.step:.0f}", "quiet"))
    return tuple(lines)


def _gap_lines(task: TaskView, cell: Cell) -> Lines:
    """The reason that a cell is not compared: the status of its seeds."""
    counts: dict[str, int] = {}
    for run in cell.failures:
        counts[run.status] = counts.get(run.status, 0) + 1
    if cell.missing:
        counts["missing"] = len(cell.missing)
    ended = Line(f"{len(cell.scores)} of {plural(len(task.result.seeds), 'seed')}", "failed")
    return (ended, *(Line(f"{count} {status}", "failed") for status, count in counts.items()))
