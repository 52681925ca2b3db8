"""Each run in a process of its own, forked from a server that has imported the backend once."""

import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any, Literal, TypeVar, cast

from qkvbench.backends import find, module_of
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record, Status
from qkvbench.train.run import run

Report = Callable[[Experiment, int, float], None]
Work = Callable[[Experiment, Callable[[int, float], None]], Record]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Died:
    """A process that ended without an answer, and how."""

    status: Status
    reason: str


@dataclass
class _Child:
    """A process that is running, and the end of the pipe from which its news comes."""

    process: Any
    news: Any
    what: Any
    answer: object = None


class Workers:
    """Fresh processes for single calls. All of them are gone when the block ends."""

    def __init__(self, backend: str, *, forked_from: Literal["server", "here"] = "server") -> None:
        """Processes for work on `backend`; the server that forks them starts with the first.

        Forked from here they need no server, which would have to import the backend once more; for
        a caller that has done nothing with it yet.
        """
        self.accelerated = str(find(backend).device()) != "cpu"
        if self.accelerated:
            # An accelerator does not survive a fork.
            self.context = multiprocessing.get_context("spawn")
        elif forked_from == "here":
            self.context = multiprocessing.get_context("fork")
        else:
            self.context = _fork_server(backend)
        self.children: list[_Child] = []

    def __enter__(self) -> "Workers":
        """The workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is still running."""
        for child in self.children:
            child.process.terminate()
        for child in self.children:
            child.process.join()

    def call(
        self, function: Callable[..., Answer], *arguments: object, until_s: float = math.inf
    ) -> Answer:
        """What `function` returns in a process of its own; it has the machine to itself.

        Raises ChildProcessError where it dies, TimeoutError where it has no answer at `until_s` on
        the clock `time.monotonic` and is ended.
        """
        child = self._start(_called, (function, *arguments), function.__name__)
        while child in self.children:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                child.process.kill()
                child.process.join()
                self.children.remove(child)
                raise TimeoutError(f"{function.__name__} had no answer in time.")
            for _, kind, value in self._news(min(1.0, left_s)):
                if kind == "died":
                    raise ChildProcessError(value.reason)
        return cast(Answer, child.answer)

    def run_all(
        self,
        experiments: Sequence[Experiment],
        jobs: int,
        report: Report,
        work: Work = run,
    ) -> Iterator[tuple[Experiment, Record | Died]]:
        """The experiments as they end, `jobs` at a time: a record, or how the process died.

        `work` is what is done with each: it is run, or run and its weights kept.
        """
        waiting = deque(experiments)
        while waiting or self.children:
            while waiting and len(self.children) < jobs:
                experiment = waiting.popleft()
                self._start(_trained, (experiment, work), experiment)
            for child, kind, value in self._news():
                if kind == "step":
                    report(child.what, *value)
                else:
                    yield child.what, value

    def running(self) -> list[Experiment]:
        """The experiments that are running now."""
        return [child.what for child in self.children if isinstance(child.what, Experiment)]

    def _start(
        self, work: Callable[..., None], arguments: tuple[object, ...], what: object
    ) -> _Child:
        news, end = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(end, *arguments), daemon=True)
        process.start()
        end.close()
        child = _Child(process, news, what)
        self.children.append(child)
        return child

    def _news(self, timeout_s: float = 1.0) -> Iterator[tuple[_Child, str, Any]]:
        """What the children send; a child that ends without an answer has died."""
        for connection in wait([child.news for child in self.children], timeout=timeout_s):
            child = next(one for one in self.children if one.news is connection)
            try:
                kind, value = child.news.recv()
            except (EOFError, OSError):
                child.process.join()
                self.children.remove(child)
                yield child, "died", _ending(child.process.exitcode)
                continue
            if kind == "step":
                yield child, kind, value
                continue
            child.process.join()
            self.children.remove(child)
            if kind == "error":
                yield child, "died", Died("failed", value)
            else:
                child.answer = value
                yield child, kind, value


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, with an exit status of its own."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fork_server(backend: str) -> ForkServerContext:
    """Processes forked from a server that has imported the backend: a second saved for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, module_of(backend)])
    return context


def _called(news: Connection, function: Callable[..., object], *arguments: object) -> None:
    """In a child: call the function, send what it returns."""
    with _errors_told(news):
        news.send(("answer", function(*arguments)))


def _trained(news: Connection, experiment: Experiment, work: Work) -> None:
    """In a child: do the work, tell a few times a second how it goes, send its record."""
    last = 0.0

    def tell(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.25:
            last = time.monotonic()
            news.send(("step", (step, loss)))

    with _errors_told(news):
        news.send(("answer", work(experiment, tell)))


@contextmanager
def _errors_told(news: Connection) -> Iterator[None]:
    """Send an error to the parent, which makes a row or a sentence of it."""
    # The parent decides what Ctrl-C means; it reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except Exception as error:
        # Nothing may be lost with the process: whatever went wrong is told.
        news.send(("error", f"{type(error).__name__}: {error}"))


def _ending(code: int | None) -> Died:
    """How a process that gave no answer came to its end."""
    if code == 128 + signal.SIGTERM:
        return Died("interrupted", "It was asked to end by SIGTERM, and kept a checkpoint.")
    if code is None or code >= 0:
        return Died("failed", f"The process ended with exit status {code} and no answer.")
    name = signal.Signals(-code).name
    likely = " The system does this when memory runs out." if name == "SIGKILL" else ""
    return Died("killed", f"The process was ended by {name}.{likely}")
