"""How a process that learns ends when it is asked to: at a moment that can be kept, once."""

import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self


class Stopping:
    """Notes SIGTERM and Ctrl-C while its block runs; who can stop asks whether to.

    The second request ends the block wherever it is. A signal that the process ignores stays
    ignored, and outside the main thread, which alone hears signals, nothing is changed.
    """

    asked: int | None
    before: dict[int, Any]

    def __init__(self) -> None:
        self.asked = None
        self.before = {}

    def __enter__(self) -> Self:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._noted)
        return self

    def __exit__(self, *_: object) -> None:
        """Answer signals as before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def end_if_asked(self) -> None:
        """End as the first signal would have ended the process."""
        if self.asked is not None:
            _end(self.asked)

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            _end(number)
        self.asked = number


def _end(number: int) -> NoReturn:
    """Ctrl-C has an exception of its own; SIGTERM an exit status."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
