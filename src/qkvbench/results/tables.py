"""The records of folders as flat tables: runs, their metrics and curves, and measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qkvbench.results.record import Measurement, Record

Kind = Literal["text", "integer", "number"]
Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column: its name, the kind of its values, and what it holds if the name does not say."""

    name: str
    kind: Kind
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of values in the order of the columns."""

    name: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Folder:
    """The good records of one folder, under the name by which it was called."""

    name: str
    runs: tuple[Record, ...]
    measurements: tuple[Measurement, ...]


def tables(folders: Sequence[Folder]) -> tuple[Table, ...]:
    """All records of the folders, damaged files left out."""
    runs = [(folder.name, run) for folder in folders for run in folder.runs]
    measured = [(folder.name, each) for folder in folders for each in folder.measurements]
    columns = tuple(column for column, _ in _RUN)
    return (
        Table(
            "runs",
            "one row for each run",
            (_FOLDER, *columns),
            tuple((name, *(read(run) for _, read in _RUN)) for name, run in runs),
        ),
        Table(
            "metrics",
            "every score of a run on the test split",
            (_FOLDER, Column("run", "text", "id of the run"), *_NAMED),
            tuple(
                (folder, run.id, name, value)
                for folder, run in runs
                for name, value in run.metrics.items()
            ),
        ),
        Table(
            "curves",
            "scores on the validation split during training",
            (_FOLDER, Column("run", "text", "id of the run"), Column("step", "integer"), *_NAMED),
            tuple(
                (folder, run.id, point.step, name, value)
                for folder, run in runs
                for point in run.curve
                for name, value in {
                    **point.metrics,
                    "train_loss": point.train_loss,
                    "gradient_norm": point.gradient_norm,
                }.items()
            ),
        ),
        Table(
            "measurements",
            "times and memory of each arm, nothing else running",
            (_FOLDER, *(column for column, _ in _MEASUREMENT)),
            tuple((name, *(read(each) for _, read in _MEASUREMENT)) for name, each in measured),
        ),
    )


_FOLDER = Column("folder", "text", "as it was given")
_NAMED = (Column("metric", "text"), Column("value", "number"))

_RUN: tuple[tuple[Column, Callable[[Record], Any]], ...] = (
    (Column("id", "text", "file: runs/ID.json"), lambda run: run.id),
    (Column("status", "text", "done, failed, diverged, …"), lambda run: run.status),
    (Column("variant", "text", "the arm: its equation"), lambda run: run.arm),
    (Column("task", "text"), lambda run: run.task),
    (Column("seed", "integer"), lambda run: run.seed),
    (Column("metric", "text", "the metric of the task"), lambda run: run.metric.name),
    (Column("score", "number", "on the test split"), lambda run: run.metrics.get(run.metric.name)),
    (Column("better", "text", "higher or lower"), lambda run: run.metric.better),
    (Column("solved_step", "integer", "if a threshold counts"), lambda run: run.solved_step),
    (Column("steps", "integer"), lambda run: run.parsed_experiment.training.steps),
    (Column("batch", "integer", "sequences"), lambda run: run.parsed_experiment.training.batch),
    (
        Column("learning_rate", "number"),
        lambda run: run.parsed_experiment.training.learning_rate,
    ),
    (Column("backend", "text"), lambda run: run.backend),
    (Column("precision", "text"), lambda run: run.precision),
    (Column("threads", "integer"), lambda run: run.threads),
    (Column("model", "text"), lambda run: run.model),
    (Column("parameters", "integer"), lambda run: run.cost.total_parameters),
    (
        Column("attention_parameters", "integer"),
        lambda run: run.cost.parameters.get("attention"),
    ),
    (Column("macs", "integer", "of one forward pass"), lambda run: run.cost.macs),
    (
        Column("cache_bytes", "integer", "per token, 16 bits a value"),
        lambda run: run.cost.cache_bytes_per_token,
    ),
    (Column("train_s", "number"), lambda run: run.observed and run.observed.train_s),
    (Column("step_p50_s", "number"), lambda run: run.observed and run.observed.step_p50_s),
    (
        Column("peak_memory_bytes", "integer"),
        lambda run: run.observed and run.observed.peak_memory_bytes,
    ),
    (Column("device", "text"), lambda run: run.machine.device),
    (Column("code", "text", "revision of the code"), lambda run: run.machine.code),
    (Column("started", "text", "date and time"), lambda run: run.started),
    (Column("reason", "text", "if it is not done"), lambda run: run.reason),
)


def _decode_ratio(each: Measurement) -> float | None:
    decode = each.timings.get("decode")
    return decode.ratio.value if decode and decode.ratio else None


_MEASUREMENT: tuple[tuple[Column, Callable[[Measurement], Any]], ...] = (
    (Column("id", "text", "and name of its file"), lambda each: each.id),
    (Column("variant", "text"), lambda each: each.arm),
    (Column("model", "text"), lambda each: each.model),
    (Column("backend", "text"), lambda each: each.backend),
    (Column("precision", "text"), lambda each: each.precision),
    (Column("threads", "integer"), lambda each: each.threads),
    (Column("context", "integer", "cached tokens"), lambda each: each.context),
    (Column("batch", "integer", "sequences"), lambda each: each.batch),
    (Column("decode_p50_s", "number", "median of a decode step"), lambda each: each.decode_p50_s),
    (Column("decode_ratio", "number", "over the baseline's"), _decode_ratio),
    (Column("cache_bytes", "integer", "of the whole cache"), lambda each: each.cache_bytes),
    (Column("memory_bytes", "integer"), lambda each: each.memory_bytes),
    (Column("samples", "integer"), lambda each: each.samples),
    (Column("kernel", "text"), lambda each: each.kernel),
    (Column("device", "text"), lambda each: each.machine.device),
    (Column("code", "text", "revision of the code"), lambda each: each.machine.code),
)
