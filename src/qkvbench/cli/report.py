"""`qkvbench report`: the table and the page, from a folder of results alone."""

import sys
from pathlib import Path

from rich.console import Console

from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import page, summary, terminal
from qkvbench.results.store import Store, StoreError
from qkvbench.results.view import view


def answer(request: Request) -> int:
    """Print the table, write the page; exit 1 at damaged records where that is asked."""
    folder = Path(request.folder)
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder of results; 'qkvbench run' makes one.")
    store = Store(folder)
    try:
        if not store.runs().good and not store.damaged():
            raise RequestError(f"There is no run in {folder}; 'qkvbench run' puts them there.")
        if request.json:
            print(summary.render(view(store)), end="")
        else:
            write_reports(store, Path(request.out) if request.out else None)
    except StoreError as error:
        raise RequestError(str(error)) from None
    return 1 if request.strict and store.damaged() else 0


def write_reports(store: Store, place: Path | None = None) -> None:
    """Print the table and the conclusions; write the page beside the records."""
    place = place or store.path / "report.html"
    seen = view(store)
    # Where nobody sees how wide it is, wide enough for the table to stay whole.
    console = Console(width=None if sys.stdout.isatty() else 120)
    terminal.print_table(seen, console)
    terminal.print_words(seen, console)
    for damaged in seen.damaged:
        print(f"Damaged, left as it is: {damaged.path}: {damaged.reason}", file=sys.stderr)
    try:
        place.write_text(page.render(seen), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place} cannot be written: {error.strerror}.") from error
    print(f"The page: {place}", file=sys.stderr)
