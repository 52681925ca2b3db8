"""One run over many devices: a process for each, which learn together, and what they come to.

The processes are started as torchrun starts them, and each of them runs the experiment; what is to
be told of it comes back in a folder.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qkvbench.backends import Learner, multi_device_backend
from qkvbench.experiment import Experiment, alone, from_json, to_json
from qkvbench.results.record import Record, Status
from qkvbench.train.checkpoint import Checkpoints

_ASKED, _RECORD, _STEP, _WEIGHTS = "asked.json", "record.json", "step.txt", "weights.safetensors"
# How often it is told how the run goes on.
_TOLD_S = 0.25


@dataclass(frozen=True)
class Lost:
    """A run whose processes left no record, and how they ended."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Meeting:
    """The folder in which the processes of one run find what is asked, and leave what they say."""

    folder: Path

    def ask(
        self, experiment: Experiment, checkpoints: Checkpoints | None, *, weights: bool
    ) -> None:
        """Say what is to be run, where it keeps checkpoints, and whether its weights are wanted."""
        asked = {
            "experiment": to_json(experiment),
            "weights": weights,
            "checkpoints": checkpoints and asdict(checkpoints),
        }
        (self.folder / _ASKED).write_text(json.dumps(asked, default=str), encoding="utf-8")

    def asked(self) -> tuple[Experiment, bool, Checkpoints | None]:
        """What is to be run, whether its weights are wanted, and where it keeps checkpoints."""
        asked = json.loads((self.folder / _ASKED).read_text(encoding="utf-8"))
        kept = asked["checkpoints"]
        if kept is not None:
            kept = Checkpoints(**{**kept, "root": Path(kept["root"])})
        return from_json(asked["experiment"]), asked["weights"], kept

    def tell(self, step: int, loss: float) -> None:
        """Say how far it has come."""
        beside = self.folder / f"{_STEP}.new"
        beside.write_text(f"{step} {loss}")
        beside.replace(self.folder / _STEP)

    def told(self) -> tuple[int, float] | None:
        """How far it has come, and its loss there; None before the first step."""
        try:
            step, loss = (self.folder / _STEP).read_text().split()
        except FileNotFoundError:
            return None
        return int(step), float(loss)

    def end(self, record: Record, rank: int) -> None:
        """Leave the record: the run's, or how one of its processes failed."""
        name = _RECORD if record.status in ("done", "diverged") else f"failed-{rank}.json"
        beside = self.folder / f"{name}.new"
        beside.write_text(record.model_dump_json(), encoding="utf-8")
        beside.replace(self.folder / name)

    def record(self) -> Record | None:
        """The record of the run; None where its processes left none."""
        path = self.folder / _RECORD
        return Record.model_validate_json(path.read_bytes()) if path.exists() else None

    def first_failure(self) -> Record | None:
        """The record of the process that failed first; others fail because it has."""
        failed = sorted(self.folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return Record.model_validate_json(failed[0].read_bytes()) if failed else None

    @property
    def weights(self) -> Path:
        """Where the weights are, if they were asked for."""
        return self.folder / _WEIGHTS


def over_devices(
    experiment: Experiment,
    report: Callable[[int, float], None],
    at_end: Callable[[Experiment, Record, Learner], None] | None,
    checkpoints: Checkpoints | None,
) -> Record | Lost:
    """The record of a run over the devices of this machine, or how it was lost.

    `at_end` has a learner with the weights that it ended with, on one device.
    """
    backend = multi_device_backend(experiment.backend)
    with TemporaryDirectory(prefix="qkvbench-") as folder:
        meeting = Meeting(Path(folder))
        meeting.ask(experiment, checkpoints, weights=at_end is not None)
        words = ["-m", "qkvbench.train.rank", folder]
        with _telling(meeting, report):
            failed = backend.launch(words, experiment.devices, Path(folder) / "logs")
        record = meeting.record()
        if failed is None and record is not None:
            if at_end is not None and record.status == "done":
                learner = backend.Learner(alone(experiment))
                learner.load_matching(meeting.weights)
                at_end(experiment, record, learner)
            return record
        return _lost(meeting, experiment, failed)


def _lost(meeting: Meeting, experiment: Experiment, failed: str | None) -> Lost:
    """How a run ended that left no record."""
    if failed is not None and failed.startswith("SIG"):
        likely = " The system does this when memory runs out." if failed == "SIGKILL" else ""
        reason = f"One of its {experiment.devices} processes was ended by {failed}.{likely}"
        return Lost("killed", reason)
    first = meeting.first_failure()
    if first is not None:
        return Lost(first.status, f"In one of {experiment.devices} processes: {first.reason}")
    said = [path.read_text(errors="replace").strip() for path in meeting.folder.rglob("stderr.log")]
    last = max((text.splitlines()[-1] for text in said if text), default="It said nothing.")
    return Lost("failed", f"One of its processes ended with {failed}. {last}")


@contextmanager
def _telling(meeting: Meeting, report: Callable[[int, float], None]) -> Iterator[None]:
    """Report how the run goes on, while the block waits for its end."""
    over = threading.Event()

    def tell() -> None:
        last = 0
        while not over.wait(_TOLD_S):
            told = meeting.told()
            if told is not None and told[0] != last:
                last = told[0]
                # Whoever asked may be gone; the run is ended then, and by no error of this thread.
                with suppress(OSError):
                    report(*told)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seldom(tell: Callable[[int, float], None]) -> Callable[[int, float], None]:
    """The same report, a few times a second at most."""
    last = 0.0

    def told(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > _TOLD_S:
            last = time.monotonic()
            tell(step, loss)

    return told
