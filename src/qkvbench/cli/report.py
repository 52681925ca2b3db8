"""`qkvbench report`: the answer and the page, or any report, from a folder of results alone."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from qkvbench.cli import names
from qkvbench.cli.evidence import every_run
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import brief, full, page
from qkvbench.reports.full import styled
from qkvbench.reports.parts import paper, plans, trend
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.across import FLOOR
from qkvbench.results.pruning import RESULT, read_result
from qkvbench.results.store import (
    Store,
    StoreError,
    collector_paused,
    os_error_text,
    write_atomically,
)
from qkvbench.results.trend import trends
from qkvbench.results.view import BASELINE, View, view

# The reports that fit themselves into a terminal, by their `render`.
ON_CONSOLE: dict[Callable[[View], str], Callable[[View, Console], None]] = {
    brief.render: brief.print_answer,
    full.render: full.print_report,
}


def answer(request: Request) -> int:
    """Print the report; with --strict, exit status 1 if there are damaged records."""
    # All that is read is needed until the end.
    with collector_paused():
        return _answer(request)


def _answer(request: Request) -> int:
    if request.paper is not None and request.out is not None:
        raise RequestError(
            "--out is the file of one report, and --paper writes several files into a folder; "
            "leave out one of them."
        )
    if _has_plans(request.folders):
        return _answer_plans(request)
    if len(request.folders) > 1:
        return _answer_trends(request)
    (folder,) = request.folders
    store = Store(folder)
    margins = names.margins(request.margin)
    named = "full" if request.full else "summary" if request.json else request.report
    wanted = names.report(named)
    place = None if request.out is None else Path(request.out)
    try:
        study = view(store, margins)
        if not (study.runs or study.others or study.tuning or study.damaged):
            raise RequestError(f"There is no run in {store.path}; 'qkvbench run' writes them.")
        names.check_margin_tasks(margins, study)
        if request.paper is not None:
            _write_paper(Path(request.paper), study)
        elif wanted is None:
            write_reports(store, place, study)
        elif place is None:
            _print(wanted.render, study)
        else:
            _write(place, wanted.render(study))
            print(f"Written: {place}", file=sys.stderr)
    except StoreError as error:
        raise RequestError(str(error)) from None
    return 1 if request.strict and study.damaged else 0


def _has_plans(folders: Sequence[str]) -> bool:
    """Whether these are folders of `qkvbench prune`; RequestError if only some are."""
    learned = [each for each in folders if (Path(each) / RESULT).is_file()]
    if learned and len(learned) < len(folders):
        other = next(each for each in folders if each not in learned)
        raise RequestError(
            f"{other} has no {RESULT}, and {learned[0]} is a folder of 'qkvbench prune'.\n"
            "Several folders have a report in one if all are of 'prune', or none is."
        )
    return bool(learned)


def _answer_trends(request: Request) -> int:
    """Print how gaps change with the budget and the size, which differ between the folders."""
    if request.full or request.report or request.paper or request.margin:
        raise RequestError(
            "The report of several studies is how the gaps change between them.\nLeave out --as, "
            "--full, --paper and --margin, or give one folder."
        )
    try:
        found = trends(every_run([Path(each) for each in request.folders]))
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not found.tasks:
        raise RequestError(
            "These folders have no task with two seeds of the same arms at two budgets or sizes.\n"
            "'qkvbench evidence ARM DIR ...' says what they show together of one arm."
        )
    if request.json:
        print(json.dumps(trend.document(found), indent=1, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for line in trend.lines(found, BASELINE):
            console.print(styled(line), soft_wrap=not console.is_terminal)
    if request.out is not None:
        # One figure, of the task with the most places.
        largest = max(found.tasks, key=lambda each: len(each.places))
        try:
            _write(Path(request.out), trend.figure(largest, BASELINE, FLOOR))
            print(f"The figure: {request.out}", file=sys.stderr)
        except StoreError as error:
            raise RequestError(str(error)) from None
    damaged = [each for folder in request.folders for each in Store(folder).runs().damaged]
    return 1 if request.strict and damaged else 0


def _answer_plans(request: Request) -> int:
    """Write the page of learned plans, into the first folder or to --out."""
    if request.full or request.json or request.report or request.paper or request.margin:
        raise RequestError(
            f"{request.folders[0]} has learned plans, whose report is one page; {RESULT} has them "
            "as JSON.\nLeave out --as, --full, --json, --paper and --margin."
        )
    try:
        results = {each: read_result(Path(each)) for each in request.folders}
        place = Path(request.out or Path(request.folders[0]) / f"report.{page.SUFFIX}")
        _write(place, plans.page(results))
    except StoreError as error:
        raise RequestError(str(error)) from None
    print(f"The page: {place}")
    return 0


def load_view(folder: str, words: Sequence[str] | None) -> View:
    """The study in a folder, with the margins of the words after --margin."""
    margins = names.margins(words)
    try:
        study = view(Store(folder), margins)
    except StoreError as error:
        raise RequestError(str(error)) from None
    if not study.runs:
        raise RequestError(f"There is no run in {folder}; 'qkvbench run' writes them.")
    names.check_margin_tasks(margins, study)
    return study


def write_reports(store: Store, place: Path | None = None, study: View | None = None) -> None:
    """Write the page into the store (or to `place`), then print the answer."""
    study = study or view(store)
    try:
        where = f"The page: {write_page(store, study, place)}"
    except StoreError as error:
        if place is not None:
            raise
        # A folder of someone else's: its table can be printed all the same.
        where = f"No page: {error} 'qkvbench report {store.path} --out FILE' writes it elsewhere."
    print_answer(study)
    for damaged in study.damaged:
        # The name of a file and its fields are not trusted.
        text = printable(f"{damaged.path}: {damaged.reason}")
        print(f"{'Newer' if damaged.newer else 'Damaged'}, not modified: {text}", file=sys.stderr)
    print(where, file=sys.stderr)


def write_page(
    store: Store, study: View, place: Path | None = None, unfinished: page.Unfinished | None = None
) -> Path:
    """Write the page into the store, or to `place`; the file. StoreError if it cannot be."""
    file = place or store.path / f"report.{page.SUFFIX}"
    _write(file, page.render(study, unfinished))
    return file


def print_answer(study: View) -> None:
    """Print the answer as the terminal or the file that is written to has room for it."""
    _print(brief.render, study)


def _print(render: Callable[[View], str], study: View) -> None:
    """Print a report, as wide as the terminal if it can be."""
    if sys.stdout.isatty() and render in ON_CONSOLE:
        ON_CONSOLE[render](study, Console())
    else:
        print(render(study), end="")


def _write_paper(folder: Path, study: View) -> None:
    """Write the figures and the table for a paper, and print the files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(os_error_text(error, folder, "written")) from error
    for name, text in paper.files(study).items():
        _write(folder / name, text)
        print(folder / name)


def _write(place: Path, text: str) -> None:
    """Write the whole file or, on an error, nothing: an older page stays as it was."""
    try:
        if place.exists() and not place.is_file():
            # A device or a pipe, which must not be replaced by a file.
            place.write_bytes(text.encode(errors="replace"))
        else:
            write_atomically(place.resolve(), text.encode(errors="replace"))
    except OSError as error:
        raise StoreError(os_error_text(error, place, "written")) from error
