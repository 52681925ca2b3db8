"""What a run has come to: filled by the loop, kept in checkpoints, told by the record."""

from dataclasses import dataclass, field

from qkvbench.results.items import ItemScores
from qkvbench.results.record import GeneratedTexts, Point, Snapshot


@dataclass
class Trained:
    """How far training has come, what was seen on the way, and the final scores of the test split.

    ``step`` is the last one taken. ``resumed`` are the steps after which another process went on;
    times are those of all of them. ``other_devices`` says on which that was, where on others.
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
    # By the processes before this one.
    compiled_before_s: float | None = None

    def has_compiled(self, seconds: float | None) -> None:
        """This process has compiled for so long by now; None is not at all."""
        parts = [each for each in (self.compiled_before_s, seconds) if each is not None]
        self.compile_s = sum(parts) if parts else None
