"""What a tracker is: a file of this folder, which mirrors curves to where a lab looks at them.

``Tracker(folder, study)`` gives a `Curve` for each run; ``lacking()`` says why there is none here,
or None. It is imported only when it is asked for, needs no network, and is never the truth: what it
is told stands in the store as well, and where it fails a study goes on without it. To add one, add
a file.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from qkvbench.experiment import Experiment, from_json
from qkvbench.results.record import Record


@runtime_checkable
class Curve(Protocol):
    """One run, as a tracker shows it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """These values after this step; steps of different values come in any order."""
        ...

    def end(self, status: str) -> None:
        """The run is over."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Where the curves of a study go."""

    def curve(self, name: str, config: dict[str, str | int | float]) -> Curve:
        """A new run with this name, and what it is a run of."""
        ...


class Module(Protocol):
    """The module that a tracker's file is."""

    def Tracker(self, folder: Path, study: str) -> Tracker:  # noqa: N802 (a class)
        """A tracker that keeps its files in `folder`."""
        ...

    def lacking(self) -> str | None:
        """Why there is no such tracker here, and what to do; None where there is."""
        ...


def names() -> list[str]:
    """All trackers, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Module:
    """The tracker with this name."""
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))


class Mirror:
    """What goes on in a study, told to one tracker until it fails; then it is left alone."""

    curves: dict[str, Curve]

    def __init__(self, name: str, folder: Path, study: str, failed: Callable[[str], None]) -> None:
        """`failed` hears, once, that the tracker does not work, and why."""
        self.name, self.failed = name, failed
        self.curves = {}
        self.tracker: Tracker | None = None
        self._tried(lambda: self._open(folder, study))

    def stepped(self, run: Experiment, step: int, loss: float) -> None:
        """A run has taken a step."""
        self._tried(lambda: self._curve(run).log({"train/loss": loss}, step))

    def ended(self, record: Record) -> None:
        """A run has ended: its scores on the way, and the last."""
        self._tried(lambda: self._end(record))

    def _open(self, folder: Path, study: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tracker = find(self.name).Tracker(folder, study)

    def _curve(self, run: Experiment) -> Curve:
        if run.id not in self.curves:
            assert self.tracker is not None
            self.curves[run.id] = self.tracker.curve(
                f"{run.task} {run.arm} seed {run.seed}",
                {
                    "id": run.id,
                    "task": str(run.task),
                    "arm": run.arm,
                    "seed": run.seed,
                    "backend": run.backend,
                    "precision": run.precision,
                    "steps": run.training.steps,
                    "learning_rate": run.training.learning_rate,
                },
            )
        return self.curves[run.id]

    def _end(self, record: Record) -> None:
        experiment = from_json(record.experiment)
        curve = self._curve(experiment)
        for point in record.curve:
            scores = {f"validation/{name}": value for name, value in point.metrics.items()}
            curve.log({**scores, "train/gradient_norm": point.gradient_norm}, point.step)
        if record.metrics:
            scores = {f"test/{name}": value for name, value in record.metrics.items()}
            curve.log(scores, experiment.training.steps)
        curve.end(record.status)
        del self.curves[record.id]

    def _tried(self, tell: Callable[[], None]) -> None:
        """Tell the tracker, unless it has failed before."""
        if self.failed is _silent:
            return
        try:
            tell()
        except Exception as error:
            # Whatever goes wrong in somebody else's program, the runs go on.
            self.failed(
                f"{self.name} does not work, and the study goes on without it. "
                f"{type(error).__name__}: {error}"
            )
            self.failed = _silent


def _silent(_reason: str) -> None:
    """It was said before."""
