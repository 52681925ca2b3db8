"""Progress of a long stage: a line now and then, with the time that is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from qkvbench.cost.units import seconds_text

Progress = Callable[[str], None]
Part = TypeVar("Part")
# Seconds between two lines of a stage.
EVERY_S = 10.0


class TimeLeft:
    """Lines about a stage of so many parts, the first of which may be done already."""

    def __init__(self, stage: str, parts: int, progress: Progress, first: int = 0) -> None:
        """Begin to count the time."""
        self.stage, self.parts, self.progress, self.first = stage, parts, progress, first
        self._began = self._last = time.monotonic()

    def done(self, count: int) -> None:
        """Write a line if one is due: so many parts are done."""
        now = time.monotonic()
        if now - self._last < EVERY_S or count >= self.parts:
            return
        self._last = now
        left = round((now - self._began) / (count - self.first) * (self.parts - count))
        self.progress(f"{self.stage}: {count} of {self.parts}, about {seconds_text(left)} left")


def counted(parts: Sequence[Part], stage: str, progress: Progress) -> Iterator[Part]:
    """The parts of a stage, with a line now and then."""
    time_left = TimeLeft(stage, len(parts), progress)
    for count, part in enumerate(parts):
        if count:
            time_left.done(count)
        yield part
