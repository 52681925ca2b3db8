"""The state of a run: the loop fills it, checkpoints save it, and the record reports it."""

import time
from dataclasses import dataclass, field

from qkvbench.results.items import ItemScores
from qkvbench.results.record import GeneratedTexts, Point, Snapshot


@dataclass
class RunState:
    """The progress of training, the observations on the way, and the scores of the test split.

    ``step`` is the last one taken. ``resumed`` are the steps after which another process resumed
    the run; times are sums over all processes. ``other_devices`` are the devices of those
    processes, if they differ. ``started`` is the time at which the first process started.
    """

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    solved_step: int | None = None
    items: ItemScores | None = None
    written: GeneratedTexts | None = None
    step_s: list[float] = field(default_factory=list)
    compile_s: float | None = None
    resumed: list[int] = field(default_factory=list)
    other_devices: list[str] = field(default_factory=list)
    started: str = ""
    # On `time.perf_counter`, in this process.
    began_s: float = 0.0
    # Of the processes before this one.
    earlier_train_s: float = 0.0
    earlier_compile_s: float | None = None

    def train_s(self) -> float:
        """Seconds of training in all processes, without compiling."""
        compile_s = (self.compile_s or 0.0) - (self.earlier_compile_s or 0.0)
        return self.earlier_train_s + time.perf_counter() - self.began_s - compile_s

    def set_compile_time(self, seconds: float | None) -> None:
        """Set the compile time of this process so far; None if nothing was compiled."""
        parts = [each for each in (self.earlier_compile_s, seconds) if each is not None]
        self.compile_s = sum(parts) if parts else None
