"""Fresh processes for single calls, forked from a server that has imported the backend once."""

import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any, Literal, TypeVar, cast

from qkvbench.backends import find, module_of, names
from qkvbench.sweep.job import Died

Answer = TypeVar("Answer")

# So long may a process take to come to a moment that can be kept, when it is asked to end.
GRACE_S = 10.0


@dataclass
class Child:
    """A process that is running, and the end of the pipe from which its answer comes."""

    process: Any
    answers: Any


@dataclass(frozen=True)
class Returned:
    """What the function of a process returned."""

    value: object


class Workers:
    """Fresh processes for single calls. All of them are gone when the block ends."""

    def __init__(self, backend: str, *, forked_from: Literal["server", "here"] = "server") -> None:
        """Processes for work on `backend`; the server that forks them starts with the first.

        Forked from here they need no server, which would have to import the backend once more; for
        a caller that has done nothing with it yet.
        """
        if not find(backend).fork_safe():
            self.context = multiprocessing.get_context("spawn")
        elif forked_from == "here" and _forkable():
            self.context = multiprocessing.get_context("fork")
        else:
            self.context = _fork_server(backend)
        self.children: list[Child] = []

    def __enter__(self) -> "Workers":
        """The workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is still running."""
        self.stop()

    def call(
        self, function: Callable[..., Answer], *arguments: object, until_s: float = math.inf
    ) -> Answer:
        """What `function` returns in a process of its own; it has the machine to itself.

        Raises ChildProcessError where it dies, TimeoutError where it has no answer at `until_s` on
        the clock `time.monotonic` and is ended.
        """
        child = self.begin(function, *arguments)
        while True:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                child.process.kill()
                child.process.join()
                self.children.remove(child)
                raise TimeoutError(f"{function.__name__} had no answer in time.")
            for _, answer in self.ended(min(1.0, left_s)):
                if isinstance(answer, Died):
                    raise ChildProcessError(answer.reason)
                return cast(Answer, answer.value)

    def begin(self, function: Callable[..., object], *arguments: object) -> Child:
        """A process of its own for this call, which goes on beside the others."""
        answers, end = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_called, args=(end, function, *arguments), daemon=True
        )
        process.start()
        end.close()
        child = Child(process, answers)
        self.children.append(child)
        return child

    def ended(self, timeout_s: float) -> Iterator[tuple[Child, Returned | Died]]:
        """The processes that have ended, and how; it waits so long for the first of them."""
        for connection in wait([child.answers for child in self.children], timeout=timeout_s):
            child = next(one for one in self.children if one.answers is connection)
            try:
                answer = child.answers.recv()
            except (EOFError, OSError):
                answer = None
            child.process.join()
            self.children.remove(child)
            yield child, answer or _ending(child.process.exitcode)

    def stop(self) -> None:
        """End all of them: asked first, so that a run may keep a checkpoint, and then at once.

        An interrupt on the way ends the patience.
        """
        try:
            for child in self.children:
                child.process.terminate()
            until_s = time.monotonic() + GRACE_S
            for child in self.children:
                child.process.join(max(0.0, until_s - time.monotonic()))
        finally:
            for child in self.children:
                child.process.kill()
                child.process.join()


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


def _forkable() -> bool:
    """Whether this process may be forked: each backend that it has imported must allow that."""
    return all(find(name).fork_safe() for name in names() if module_of(name) in sys.modules)


def _fork_server(backend: str) -> ForkServerContext:
    """Processes forked from a server that has imported the backend: a second saved for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, module_of(backend)])
    return context


def _called(answers: Connection, function: Callable[..., object], *arguments: object) -> None:
    """In a child: call the function, send what it returns or what went wrong."""
    # The parent decides what Ctrl-C means; it reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer: Returned | Died = Returned(function(*arguments))
    except Exception as error:
        # Nothing may be lost with the process: whatever went wrong is told.
        answer = Died("failed", f"{type(error).__name__}: {error}")
    # Who asked may be dead by now.
    with suppress(OSError):
        answers.send(answer)


def _ending(code: int | None) -> Died:
    """How a process that gave no answer came to its end."""
    if code == 128 + signal.SIGTERM:
        return Died("interrupted", "It was asked to end by SIGTERM, and kept a checkpoint.")
    if code is None or code >= 0:
        return Died("failed", f"The process ended with exit status {code} and no answer.")
    name = signal.Signals(-code).name
    likely = " The system does this when memory runs out." if name == "SIGKILL" else ""
    return Died("killed", f"The process was ended by {name}.{likely}")
