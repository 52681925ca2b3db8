"""Deferred SIGTERM and Ctrl-C: training ends at the next step, after saving a checkpoint."""

import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self


class DeferredSignals:
    """Notes SIGTERM and Ctrl-C while its block runs, for the loop to act on at a safe point.

    The second signal ends the block at once. A signal that the process ignores stays ignored. A
    no-op outside the main thread, which alone receives signals.
    """

    received: int | None
    before: dict[int, Any]

    def __init__(self) -> None:
        self.received = None
        self.before = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def end_if_received(self) -> None:
        """End as the first signal would have ended the process; a no-op without one."""
        if self.received is not None:
            _end(self.received)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            _end(number)
        self.received = number


def _end(number: int) -> NoReturn:
    """Raise KeyboardInterrupt for Ctrl-C, or exit with the status of SIGTERM."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
