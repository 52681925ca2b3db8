"""Fresh processes for single calls, forked from a server that imported the backend once."""

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
from qkvbench.train.multi_process import ProcessFailure

Answer = TypeVar("Answer")

# How long a process may take to save a checkpoint after SIGTERM, before SIGKILL.
GRACE_S = 10.0


@dataclass
class Child:
    """A running process, and the connection that receives its answer."""

    process: Any
    answers: Any


@dataclass(frozen=True)
class Returned:
    """The return value of a function that ran in a process."""

    value: object


class Workers:
    """Fresh processes for single calls. All have ended when the block ends."""

    def __init__(self, backend: str, *, forked_from: Literal["server", "here"] = "server") -> None:
        """Processes for work on `backend`; the fork server starts with the first of them.

        Forking from "here" saves the server's import of the backend, and is safe only if the caller
        has not computed with the backend yet.
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
        """The result of `function` in a fresh process, with no other process of these beside it.

        Raises ChildProcessError if the process fails, and TimeoutError after killing it at
        `until_s` on the clock `time.monotonic`.
        """
        child = self.start(function, *arguments)
        while True:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                child.process.kill()
                child.process.join()
                self.children.remove(child)
                raise TimeoutError(f"{function.__name__} did not return in time.")
            for _, answer in self.poll(min(1.0, left_s)):
                if isinstance(answer, ProcessFailure):
                    raise ChildProcessError(answer.reason)
                return cast(Answer, answer.value)

    def start(self, function: Callable[..., object], *arguments: object) -> Child:
        """Start a process for this call and return at once."""
        answers, end = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_call_and_send, args=(end, function, *arguments), daemon=True
        )
        process.start()
        end.close()
        child = Child(process, answers)
        self.children.append(child)
        return child

    def poll(self, timeout_s: float) -> Iterator[tuple[Child, Returned | ProcessFailure]]:
        """The processes that have ended, and how; waits up to `timeout_s` for the first of them."""
        for connection in wait([child.answers for child in self.children], timeout=timeout_s):
            child = next(one for one in self.children if one.answers is connection)
            try:
                answer = child.answers.recv()
            except (EOFError, OSError):
                answer = None
            child.process.join()
            self.children.remove(child)
            yield child, answer or _failure(child.process.exitcode)

    def stop(self) -> None:
        """End all processes: SIGTERM, so that runs can save checkpoints, and later SIGKILL.

        An interrupt meanwhile kills them at once.
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
    """Make SIGTERM end the block as Ctrl-C does, but with its own exit status."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forkable() -> bool:
    """Whether this process may be forked: every imported backend must allow it."""
    return all(find(name).fork_safe() for name in names() if module_of(name) in sys.modules)


def _fork_server(backend: str) -> ForkServerContext:
    """Processes forked from a server that imported the backend: saves each some seconds."""
    context = multiprocessing.get_context("forkserver")
    late = find(backend).imported_late()
    context.set_forkserver_preload([__name__, "qkvbench.sweep.job", module_of(backend), *late])
    return context


def _call_and_send(
    answers: Connection, function: Callable[..., object], *arguments: object
) -> None:
    """In the child process: call the function, send its result or its error."""
    # Ctrl-C reaches the whole process group; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer: Returned | ProcessFailure = Returned(function(*arguments))
    except Exception as error:
        # Report any error: it would be lost with the process.
        answer = ProcessFailure("failed", f"{type(error).__name__}: {error}")
    # The parent may be dead by now.
    with suppress(OSError):
        answers.send(answer)


def _failure(code: int | None) -> ProcessFailure:
    """How a process ended that sent no answer."""
    if code == 128 + signal.SIGTERM:
        return ProcessFailure(
            "interrupted", "SIGTERM ended the process, after it saved a checkpoint."
        )
    if code is None or code >= 0:
        return ProcessFailure("failed", f"The process ended with exit status {code} and no answer.")
    name = signal.Signals(-code).name
    likely = " The system does this when memory runs out." if name == "SIGKILL" else ""
    return ProcessFailure("killed", f"The process was ended by {name}.{likely}")
