"""One run over several devices: a process for each, which train together.

The processes start as torchrun starts them, and each runs the experiment. A folder holds the
request and their results.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qkvbench.backends import Learner, multi_device_backend
from qkvbench.experiment import Experiment, alone, from_json, to_json
from qkvbench.results.record import Record, Status
from qkvbench.train.checkpoint import Checkpoints

_REQUEST, _RECORD = "request.json", "record.json"
_PROGRESS, _WEIGHTS = "progress.txt", "weights.safetensors"
# Seconds between two reports of progress.
_REPORT_S = 0.25


@dataclass(frozen=True)
class ProcessFailure:
    """How a process ended that left no result."""

    status: Status
    reason: str


@dataclass(frozen=True)
class RunFolder:
    """The folder through which the processes of one run get the request and return results."""

    folder: Path

    def write_request(
        self, experiment: Experiment, checkpoints: Checkpoints | None, *, weights: bool
    ) -> None:
        """Write the experiment, its checkpoints, and whether to save its final `weights`."""
        request = {
            "experiment": to_json(experiment),
            "weights": weights,
            "checkpoints": checkpoints and asdict(checkpoints),
        }
        (self.folder / _REQUEST).write_text(json.dumps(request, default=str), encoding="utf-8")

    def read_request(self) -> tuple[Experiment, bool, Checkpoints | None]:
        """The experiment, whether to save its final weights, and its checkpoints."""
        request = json.loads((self.folder / _REQUEST).read_text(encoding="utf-8"))
        checkpoints = request["checkpoints"]
        if checkpoints is not None:
            checkpoints = Checkpoints(**{**checkpoints, "root": Path(checkpoints["root"])})
        return from_json(request["experiment"]), request["weights"], checkpoints

    def write_progress(self, step: int, loss: float) -> None:
        """Write the last step and its loss."""
        self._write(_PROGRESS, f"{step} {loss}")

    def read_progress(self) -> tuple[int, float] | None:
        """The last step and its loss; None before the first step."""
        try:
            step, loss = (self.folder / _PROGRESS).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None
        return int(step), float(loss)

    def write_record(self, record: Record, rank: int) -> None:
        """Write the record of the run, or of the failure of one of its processes."""
        done = record.status in ("done", "diverged")
        self._write(_RECORD if done else f"failed-{rank}.json", record.model_dump_json())

    def read_record(self) -> Record | None:
        """The record of the run; None if its processes left none."""
        path = self.folder / _RECORD
        return Record.model_validate_json(path.read_bytes()) if path.exists() else None

    def first_failure(self) -> Record | None:
        """The record of the process that failed first: the others fail because of it."""
        failed = sorted(self.folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return Record.model_validate_json(failed[0].read_bytes()) if failed else None

    @property
    def weights(self) -> Path:
        """The file of the final weights, if they were requested."""
        return self.folder / _WEIGHTS

    def _write(self, name: str, text: str) -> None:
        """Write a file in one step: readers see all of it or the one before."""
        temporary = self.folder / f"{name}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)


def run_processes(
    experiment: Experiment,
    report: Callable[[int, float], None],
    at_end: Callable[[Experiment, Record, Learner], None] | None,
    checkpoints: Checkpoints | None,
) -> Record | ProcessFailure:
    """The record of a run over devices of this machine, or how its processes failed.

    `at_end` is called with a learner on one device that has the final weights.
    """
    backend = multi_device_backend(experiment.backend)
    with TemporaryDirectory(prefix="qkvbench-") as path:
        folder = RunFolder(Path(path))
        folder.write_request(experiment, checkpoints, weights=at_end is not None)
        with _reporting(folder, report):
            failure = backend.launch(
                ["-m", "qkvbench.train.rank", path], experiment.devices, Path(path) / "logs"
            )
        record = folder.read_record()
        if failure is not None or record is None:
            return _failure(folder, experiment, failure)
        if at_end is not None and record.status == "done":
            learner = backend.Learner(alone(experiment))
            learner.load_matching(folder.weights)
            at_end(experiment, record, learner)
        return record


def _failure(folder: RunFolder, experiment: Experiment, ending: str | None) -> ProcessFailure:
    """How a run failed whose processes left no record."""
    if ending is not None and ending.startswith("SIG"):
        hint = " The system does this when memory runs out." if ending == "SIGKILL" else ""
        reason = f"One of its {experiment.devices} processes was ended by {ending}.{hint}"
        return ProcessFailure("killed", reason)
    first = folder.first_failure()
    if first is not None:
        reason = f"In one of {experiment.devices} processes: {first.reason}"
        return ProcessFailure(first.status, reason)
    logs = [
        path.read_text(encoding="utf-8", errors="replace").strip()
        for path in folder.folder.rglob("stderr.log")
    ]
    last = max((text.splitlines()[-1] for text in logs if text), default="It printed nothing.")
    return ProcessFailure("failed", f"One of its processes ended with {ending}. {last}")


@contextmanager
def _reporting(folder: RunFolder, report: Callable[[int, float], None]) -> Iterator[None]:
    """Report the progress of the run from a thread while the block runs.

    If a report fails, as of a run that another process has taken over, this process is terminated
    as by the system, which ends those that it waits for; the failure is then raised.
    """
    over = threading.Event()
    failures: list[Exception] = []

    def forward() -> None:
        last = 0
        while not over.wait(_REPORT_S):
            progress = folder.read_progress()
            if progress is not None and progress[0] != last:
                last = progress[0]
                try:
                    report(*progress)
                except OSError:
                    # If the receiver of reports has ended, its own signal ends this run.
                    continue
                except Exception as error:
                    failures.append(error)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if failures:
            raise failures[0]


def throttle(report: Callable[[int, float], None]) -> Callable[[int, float], None]:
    """The same report, a few times a second at most."""
    last = 0.0

    def throttled(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_S:
            last = time.monotonic()
            report(step, loss)

    return throttled
