"""Trackers: each file of this folder mirrors curves to an experiment tracker. Its name is the key.

``Tracker(folder, study)`` makes a `Curve` for each run; ``missing_requirement()`` is the reason why
the tracker cannot be used here, or None. A tracker is imported only if it is requested, and needs
no network. The store has the same values, so a study goes on if a tracker fails. To add a tracker,
add a file.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from qkvbench.experiment import Experiment
from qkvbench.results.record import Record


@runtime_checkable
class Curve(Protocol):
    """One run in a tracker."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log these values of a step; steps of different values may come in any order."""
        ...

    def end(self, status: str) -> None:
        """Finish the run."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """The destination of a study's curves."""

    def curve(self, name: str, config: dict[str, str | int | float]) -> Curve:
        """A new run with this name and configuration."""
        ...


class Module(Protocol):
    """The module of a tracker's file."""

    def Tracker(self, folder: Path, study: str) -> Tracker:  # noqa: N802 (a class)
        """A tracker that keeps its files in `folder`."""
        ...

    def missing_requirement(self) -> str | None:
        """Why the tracker cannot be used here, and what to do; None if it can."""
        ...


def names() -> list[str]:
    """All trackers, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Module:
    """The tracker with this name."""
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))


class Mirror:
    """Forwards the events of a study to one tracker, until the tracker fails."""

    curves: dict[str, Curve]

    def __init__(self, name: str, folder: Path, study: str, failed: Callable[[str], None]) -> None:
        """`failed` is called with the reason, once, if the tracker fails."""
        self.name, self.failed = name, failed
        self.curves = {}
        self.tracker: Tracker | None = None
        self._try(lambda: self._open(folder, study))

    def on_step(self, run: Experiment, step: int, loss: float) -> None:
        """A run has taken a step."""
        self._try(lambda: self._curve(run).log({"train/loss": loss}, step))

    def on_end(self, record: Record) -> None:
        """A run has ended: forward its curve of scores, and the last."""
        self._try(lambda: self._end(record))

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
        experiment = record.parsed_experiment
        curve = self._curve(experiment)
        for point in record.curve:
            scores = {f"validation/{name}": value for name, value in point.metrics.items()}
            curve.log({**scores, "train/gradient_norm": point.gradient_norm}, point.step)
        if record.metrics:
            scores = {f"test/{name}": value for name, value in record.metrics.items()}
            curve.log(scores, experiment.training.steps)
        curve.end(record.status)
        del self.curves[record.id]

    def _try(self, forward: Callable[[], None]) -> None:
        """Forward to the tracker, unless it has failed before."""
        if self.failed is _no_op:
            return
        try:
            forward()
        except Exception as error:
            # An error in a tracker must not end the runs.
            self.failed(
                f"{self.name} does not work, and the study goes on without it. "
                f"{type(error).__name__}: {error}"
            )
            self.failed = _no_op


def _no_op(_reason: str) -> None:
    """No-op."""
