"""`qkvbench report`: the table and the page, or any report, from a folder of results alone."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import page, terminal
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.store import Store, StoreError
from qkvbench.results.view import View, view


def answer(request: Request) -> int:
    """Print what was asked for; exit 1 at damaged records where that is asked."""
    store = found(request.folder)
    margins = names.margins(request.margin)
    wanted = names.report("summary" if request.json else request.report)
    place = None if request.out is None else Path(request.out)
    try:
        if not store.runs().good and not store.damaged():
            raise RequestError(f"There is no run in {store.path}; 'qkvbench run' puts them there.")
        seen = view(store, margins)
        names.known_tasks(margins, seen)
        if wanted is None:
            write_reports(store, place, seen)
        elif place is None:
            print(wanted.render(seen), end="")
        else:
            _write(place, wanted.render(seen))
    except StoreError as error:
        raise RequestError(str(error)) from None
    return 1 if request.strict and store.damaged() else 0


def found(folder: str) -> Store:
    """The store in a folder that a person named."""
    if not Path(folder).is_dir():
        raise RequestError(f"{folder} is not a folder of results; 'qkvbench run' makes one.")
    return Store(folder)


def opened(folder: str, words: Sequence[str] | None) -> View:
    """The study in a folder that a person named, with the margins that were stated."""
    margins = names.margins(words)
    try:
        seen = view(found(folder), margins)
    except StoreError as error:
        raise RequestError(str(error)) from None
    if not seen.runs:
        raise RequestError(f"There is no run in {folder}; 'qkvbench run' puts them there.")
    names.known_tasks(margins, seen)
    return seen


def write_reports(store: Store, place: Path | None = None, seen: View | None = None) -> None:
    """Write the page beside the records, then print the table and the conclusions."""
    seen = seen or view(store)
    place = place or store.path / f"report.{page.SUFFIX}"
    _write(place, page.render(seen))
    _print_table(seen)
    for damaged in seen.damaged:
        # A file's name and its fields may come from anyone.
        said = printable(f"{damaged.path}: {damaged.reason}")
        print(f"Damaged, left as it is: {said}", file=sys.stderr)
    print(f"The page: {place}", file=sys.stderr)


def _print_table(seen: View) -> None:
    if sys.stdout.isatty():
        console = Console()
        terminal.print_table(seen, console)
        terminal.print_words(seen, console)
    else:
        print(terminal.render(seen), end="")


def _write(place: Path, text: str) -> None:
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place} cannot be written: {error.strerror}.") from error
