"""`qkvbench watch`: the state of a study, its answer so far and its page, while it runs."""

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qkvbench.cli import report
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import seconds_text
from qkvbench.reports import brief, page
from qkvbench.reports.parts.formatting import plural, printable
from qkvbench.results.remaining import Remaining, remaining
from qkvbench.results.store import Store, StoreError
from qkvbench.results.view import View, view
from qkvbench.sweep.leases import Leases

INTERRUPTED = 130
# Reading and drawing a large study takes seconds: at most a tenth of the time is spent on it.
REST = 9
# A page that loads itself more often cannot be read.
LEAST_RELOAD_S = 30


@dataclass
class _Watch:
    """A store, and the last that was read of it."""

    store: Store
    every_s: float
    leases: Leases = field(init=False)
    marks: object = None
    study: View | None = None
    state: Remaining | None = None
    page: str = ""

    def __post_init__(self) -> None:
        self.leases = Leases(self.store.leases)

    def look(self) -> bool:
        """Read the store again and write the page, if a file has changed; whether one had."""
        marks = _marks(self.store)
        if marks == self.marks:
            return False
        self.marks = marks
        info = self.store.study()
        self.study = view(self.store)
        self.state = remaining(self.store, info, self.study) if info else None
        self.write_page(live=not self.finished)
        return True

    @property
    def finished(self) -> bool:
        """Whether no run is left, or nothing says how many there are to be."""
        if self.state is not None:
            return self.state.finished
        return self.study is not None and bool(self.study.runs)

    def write_page(self, *, live: bool) -> None:
        """Write the page of what was read; if `live`, it loads itself again."""
        if self.study is None or not self.study.runs:
            return
        reload_s = max(LEAST_RELOAD_S, round(self.every_s))
        unfinished = page.Unfinished(self.text, reload_s) if live else None
        try:
            self.page = f"The page: {report.write_page(self.store, self.study, None, unfinished)}"
        except StoreError as error:
            # What is printed can be read all the same.
            self.page = f"No page: {error}"

    @property
    def text(self) -> str:
        """The state of the study in a sentence or three."""
        study, state = self.study, self.state
        if study is None or (state is None and not study.runs):
            return f"There is no run in {printable(str(self.store.path))} yet."
        damaged = f" {plural(len(study.damaged), 'file')} damaged." if study.damaged else ""
        if state is None:
            # Without `study.json` the records are all that is known.
            return f"{plural(len(study.runs), 'run')}; no study says how many are to be.{damaged}"
        failed = "".join(f", {count} {status}" for status, count in state.failed.items())
        head = f"{state.done} of {plural(state.total, 'run')} done{failed}"
        if state.finished:
            return f"{head}; no run is left.{damaged}"
        return f"{head}, {sum(state.left.values())} left. {self._time_text(state)}{damaged}"

    def _time_text(self, state: Remaining) -> str:
        """The time that the runs which are left take, if as many run at once as do now."""
        active = self.leases.in_progress()
        if not active:
            return "None is in progress: the command that ran them goes on if it is repeated."
        if state.left_s is None:
            return f"{active} in progress; the time left is known once each task has a run."
        left = seconds_text(state.left_s / active)
        return f"{active} in progress; about {left} of training left."


def answer(request: Request) -> int:
    """Show the study until no run is left: status 0; or until Ctrl-C: 130."""
    watch = _Watch(Store(request.folder), request.every)
    try:
        _follow(watch, once=request.once)
    except StoreError as error:
        raise RequestError(str(error)) from None
    except KeyboardInterrupt:
        watch.write_page(live=False)
        print("No longer watched; the study itself goes on.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _follow(watch: _Watch, *, once: bool) -> None:
    in_place = sys.stdout.isatty() and not once
    console = Console()
    with ExitStack() as stack:
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if in_place else None
        while True:
            began_s = time.monotonic()
            changed = watch.look()
            if live is not None:
                live.update(_picture(watch, console), refresh=True)
            elif changed:
                print(watch.text, flush=True)
            if once or watch.finished:
                break
            time.sleep(max(watch.every_s, REST * (time.monotonic() - began_s)))
    if not in_place and watch.study is not None and watch.study.runs:
        print()
        report.print_answer(watch.study)
    if watch.page:
        print(watch.page, file=sys.stderr)


def _picture(watch: _Watch, console: Console) -> Group:
    """The state, and the answer so far; what is below the last line of the terminal is cut off."""
    state = Text(watch.text, style="bold")
    if watch.study is None or not watch.study.runs:
        return Group(state)
    with console.capture() as captured:
        brief.print_answer(watch.study, console)
    return Group(state, "", Text.from_ansi(captured.get()))


def _marks(store: Store) -> dict[Path, tuple[int, int]]:
    """The time and size of every file of the store that a report reads."""
    marks: dict[Path, tuple[int, int]] = {}
    for folder in (store.path / "runs", store.path / "measurements"):
        try:
            for each in os.scandir(folder):
                if each.name.endswith(".json"):
                    marks[Path(each.path)] = _mark(each)
        except OSError:
            # It is not there yet; or reading the store says why it cannot be read.
            continue
    study = store.path / "study.json"
    if study.exists():
        marks[study] = _mark(study)
    return marks


def _mark(file: "os.DirEntry[str] | Path") -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        # It was replaced at this moment: the next look finds it changed.
        return 0, 0
    return status.st_mtime_ns, status.st_size
