"""`qkvbench query`: SQL over the records of folders, by DuckDB, in memory and without files."""

import csv
import json
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports.parts.formatting import plural, printable, spreadsheet_text
from qkvbench.results.store import Store, StoreError
from qkvbench.results.tables import Folder, Table, Value, tables

if TYPE_CHECKING:
    import duckdb

TYPES = {"text": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE"}
# Whoever asks may not be whoever wrote the records: SQL reads the tables and nothing else.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": "2GB",
    "threads": "2",
}
# A terminal is not read beyond so many rows.
SHOWN_ROWS = 200
# Letters that a column has at least, or it cannot be read.
LEAST_WIDTH = 5
EXAMPLE = "select variant, task, avg(score) from runs group by all order by task, variant"


def answer(request: Request) -> int:
    """Print the rows; without a question, the tables and their columns."""
    folders, question = _split(request.words)
    made = tables([_folder(name) for name in folders])
    if question is None:
        _print_tables(made, folders[0])
        return 0
    names, rows = _rows(made, question)
    match request.format:
        case "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(map(spreadsheet_text, names))
            writer.writerows(
                [spreadsheet_text(each) if isinstance(each, str) else each for each in row]
                for row in rows
            )
        case "json":
            print(json.dumps(_documents(names, rows), indent=1, allow_nan=False, default=str))
        case _:
            _print_rows(names, rows)
    return 0


def _is_folder(word: str) -> bool:
    try:
        return Path(word).is_dir()
    except OSError:
        # A question may be longer than the name of a file.
        return False


def _split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The folders, and the question: a last word that is no folder."""
    *folders, last = words
    # An empty text would be this folder.
    question = None if last and _is_folder(last) else last
    if question is None:
        folders.append(last)
    wrong = [each for each in folders if not _is_folder(each)]
    if wrong or not folders:
        name = printable(wrong[0] if wrong else last)
        raise RequestError(
            f"{name} is not a folder of results; 'qkvbench run' writes one.\n"
            f'Write the question in quotes after the folders: qkvbench query DIR "{EXAMPLE}"'
        )
    return list(dict.fromkeys(folders)), question


def _folder(name: str) -> Folder:
    store = Store(name)
    try:
        runs, measurements = store.runs(), store.measurements()
    except StoreError as error:
        raise RequestError(str(error)) from None
    if damaged := len(runs.damaged) + len(measurements.damaged):
        text = (
            f"{plural(damaged, 'damaged file')} of {name} left out; 'qkvbench report' names them."
        )
        print(printable(text), file=sys.stderr)
    # SQL takes text, which the name of a folder need not be.
    return Folder(printable(name), runs.good, measurements.good)


def _rows(made: Sequence[Table], question: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names and rows of the answer."""
    try:
        import duckdb
    except ImportError:
        raise RequestError(
            "SQL needs the package duckdb: 'pip install \"qkv-ablation-bench[sql]\"' installs it.\n"
            "In a clone, './qkv query …' does so by itself. Without SQL: 'qkvbench report --json'."
        ) from None
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        for table in made:
            _create(connection, table)
        connection.execute("SET lock_configuration = true")
        try:
            statements = connection.extract_statements(question)
            kinds = {each.type.name for each in statements}
            if len(statements) != 1 or not kinds <= {"SELECT", "EXPLAIN"}:
                raise RequestError(
                    f"One question at a time, which begins with select, from, with, describe or "
                    f"summarize; this is {_kinds_text(kinds, len(statements))}."
                )
            found = connection.execute(statements[0])
            names = [str(each[0]) for each in found.description or ()]
            return names, found.fetchall()
        except duckdb.Error as error:
            raise RequestError(_error_text(str(error), made)) from None


def _kinds_text(kinds: Iterable[str], count: int) -> str:
    named = ", ".join(sorted(each.lower() for each in kinds)) or "none"
    return named if count <= 1 else f"{count} statements ({named})"


def _create(connection: "duckdb.DuckDBPyConnection", table: Table) -> None:
    columns = [(column.name, TYPES[column.kind]) for column in table.columns]
    head = ", ".join(f'"{name}" {kind}' for name, kind in columns)
    connection.execute(f"CREATE TABLE {table.name} ({head})")
    if table.rows:
        # A list for each column: row by row it takes fifty times as long.
        values = [list(column) for column in zip(*table.rows, strict=True)]
        lists = ", ".join(f"unnest(?::{kind}[])" for _, kind in columns)
        connection.execute(f"INSERT INTO {table.name} SELECT {lists}", values)


def _error_text(error: str, made: Sequence[Table]) -> str:
    """DuckDB's own sentence, without its drawing of the place, and what can be asked for."""
    # Its first line is "Parser Error: …".
    first = error.partition("\n")[0].partition(": ")[2] or "it gave no reason"
    if "disabled by configuration" in error or "disabled through configuration" in error:
        first = "a question reads the tables below, and no file, network or extension"
    names = ", ".join(table.name for table in made)
    return (
        f"This cannot be answered: {printable(first).rstrip('.!')}.\n"
        f"The tables are {names}; 'qkvbench query DIR' lists their columns."
    )


def _documents(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    unique = _unique(names)
    return [dict(zip(unique, map(_json_value, row), strict=True)) for row in rows]


def _unique(names: Sequence[str]) -> list[str]:
    """The names of columns, a number after each that stands further left already."""
    found: list[str] = []
    for name in names:
        others = (f"{name}_{number}" for number in count(1))
        free = (each for each in others if each not in names and each not in found)
        found.append(next(free) if name in found else name)
    return found


def _json_value(value: Any) -> Any:
    """The value for JSON, which has no decimal and no infinite numbers: None for the latter."""
    match value:
        case Decimal():
            return float(value)
        case float() if not math.isfinite(value):
            return None
        case list() | tuple():
            return [_json_value(each) for each in value]
        case dict():
            return {str(key): _json_value(each) for key, each in value.items()}
        case _:
            return value


def _print_rows(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    console = Console()
    # Columns of a few letters say nothing, so wide rows are printed one below the other.
    if sum(max(len(name), LEAST_WIDTH) + 2 for name in names) > console.width:
        for row in rows[:SHOWN_ROWS]:
            fields = Drawn(box=None, pad_edge=False, show_header=False)
            fields.add_column(style="bold", no_wrap=True)
            fields.add_column(overflow="fold")
            for name, value in zip(names, row, strict=True):
                fields.add_row(Text(printable(name)), Text(_text(value)))
            console.print(fields, "")
        _print_count(console, rows)
        return
    table = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(names):
        numeric = any(isinstance(row[column], int | float) for row in rows[:SHOWN_ROWS])
        justify = "right" if numeric else "left"
        table.add_column(Text(printable(name)), justify=justify, overflow="fold")
    for row in rows[:SHOWN_ROWS]:
        table.add_row(*(Text(_text(value)) for value in row))
    console.print(table)
    _print_count(console, rows)


def _print_count(console: Console, rows: Sequence[tuple[Any, ...]]) -> None:
    left = len(rows) - SHOWN_ROWS
    more = f", of which {left} are not shown: --format csv prints all" if left > 0 else ""
    console.print(f"{plural(len(rows), 'row')}{more}", style="dim", highlight=False)


def _text(value: object) -> str:
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
        case _:
            return printable(str(value))


def _print_tables(made: Sequence[Table], folder: str) -> None:
    console = Console()
    for table in made:
        drawn = Drawn(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        drawn.add_column(style="bold", no_wrap=True)
        drawn.add_column(style="dim", no_wrap=True)
        drawn.add_column(overflow="ellipsis", no_wrap=True, max_width=26)
        drawn.add_column(style="dim", overflow="fold")
        for index, column in enumerate(table.columns):
            example = _text(_first(row[index] for row in table.rows))
            drawn.add_row(f"  {column.name}", column.kind, Text(example), column.about)
        title = f"{table.name}: {table.about} ({plural(len(table.rows), 'row')})"
        console.print(Text(title, style="bold underline"))
        console.print(drawn)
        console.print()
    console.print("Ask, for example:", highlight=False)
    ask = f'  qkvbench query {shlex.quote(printable(folder))} "{EXAMPLE}"'
    console.print(ask, markup=False, highlight=False, soft_wrap=True)


def _first(values: Iterable[Value]) -> Value:
    return next((each for each in values if each is not None), None)
