"""Examples out of a table: a column of classes beside a column of text, or columns of numbers."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

import numpy as np
from jaxtyping import Float

from qkvbench.data.cache import DataRefusedError
from qkvbench.data.own.files import shown, text

# A cell takes ten times its letters while it is read.
TABLE_BYTES = 100 * 10**6
MOST_NUMBERS = 1024
# A number in fp32, and its square, stay finite.
LARGEST = 1e18
LABELS = ("label", "class", "target", "category", "y")
TEXTS = ("text", "sentence", "review", "content", "document")


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a table: what is read of each, a text or numbers, and its class."""

    examples: list[str] | Float[np.ndarray, "rows columns"]
    labels: list[str]
    places: list[str]


def table(name: str, found: bytes, delimiter: str) -> Table:
    """The rows below the header, every one with as many cells as it."""
    rows = _rows(name, text(name, found), delimiter)
    _, first = next(rows, (1, []))
    if not first:
        raise DataRefusedError(f"'{name}' has no filled cell.")
    header = [cell.strip() for cell in first]
    label = _label(name, header, delimiter)
    others = [column for column in range(len(header)) if column != label]
    if not others:
        raise DataRefusedError(f"'{name}' has no column beside '{header[label]}' to tell it from.")
    named = [column for column in others if header[column].lower() in TEXTS]
    if len(named) > 1:
        both = " and ".join(header[column] for column in named)
        raise DataRefusedError(f"'{name}' has more than one column of text: {both}. Rename one.")

    body = list(rows)
    if not body:
        raise DataRefusedError(f"'{name}' has a header and no rows.")
    for line, cells in body:
        if len(cells) != len(header):
            raise DataRefusedError(
                f"Line {line:,} of '{name}' has {len(cells)} cells, its header has {len(header)}."
            )
        if not cells[label].strip():
            raise DataRefusedError(f"Line {line:,} of '{name}' has no {header[label]}.")
    labels = [cells[label].strip() for _, cells in body]
    places = [f"line {line:,}" for line, _ in body]
    if (
        len(others) == 1
        and not named
        and not all(_is_number(cells[others[0]]) for _, cells in body)
    ):
        named = others
    if named:
        return Table(_texts(name, header, body, named[0]), labels, places)
    return Table(_numbers(name, header, body, others), labels, places)


def _rows(name: str, plain: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, and the line in which it begins."""
    csv.field_size_limit(TABLE_BYTES)
    reader = csv.reader(StringIO(plain.decode(), newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataRefusedError(
            f"Line {line:,} of '{name}' is no row of a table: {error}."
        ) from None


def _label(name: str, header: list[str], delimiter: str) -> int:
    found = [column for column, cell in enumerate(header) if cell.lower() in LABELS]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(f"'{header[column]}'" for column in found)
        raise DataRefusedError(
            f"'{name}' has more than one column that may be the class: {both}. Rename one."
        )
    other = next((mark for mark in ";\t," if mark != delimiter and mark in header[0]), None)
    cells = f"\nCells are parted by {delimiter!r} here, not by {other!r}." if other else ""
    raise DataRefusedError(
        f"'{name}' has no column for the class; its columns are: {shown(', '.join(header))}.\n"
        f"Call one of them {', '.join(LABELS[:-1])} or {LABELS[-1]}.{cells}"
    )


def _texts(
    name: str, header: list[str], body: list[tuple[int, list[str]]], column: int
) -> list[str]:
    for line, cells in body:
        if not cells[column].strip():
            raise DataRefusedError(f"Line {line:,} of '{name}' has no {header[column]}.")
    return [cells[column].strip() for _, cells in body]


def _numbers(
    name: str, header: list[str], body: list[tuple[int, list[str]]], columns: list[int]
) -> Float[np.ndarray, "rows columns"]:
    if len(columns) > MOST_NUMBERS:
        raise DataRefusedError(
            f"'{name}' has {len(columns):,} columns beside the class; at most {MOST_NUMBERS:,} "
            "numbers are read of a row."
        )
    for line, cells in body:
        for column in columns:
            if not _is_number(cells[column]):
                raise DataRefusedError(
                    f"Line {line:,}, column '{shown(header[column])}' of '{name}' holds "
                    f"'{shown(cells[column])}', which is no number up to ±{LARGEST:g}.\n"
                    "Beside the class all columns are numbers, or one is called "
                    f"{', '.join(TEXTS[:-1])} or {TEXTS[-1]}."
                )
    return np.array([[float(cells[column]) for column in columns] for _, cells in body])


def _is_number(cell: str) -> bool:
    # Python's own numbers may have digits of any script, and underscores between them.
    if not cell.strip().isascii() or "_" in cell:
        return False
    try:
        return abs(float(cell)) <= LARGEST
    except ValueError:
        return False
