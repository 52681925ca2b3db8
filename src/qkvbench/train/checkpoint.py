"""Checkpoints: what a run needs to go on after anything, with the bits of one that was never ended.

One is a folder of numbers and strict JSON, without pickles. It is written beside its place, flushed
to disk and renamed, so it is there whole or not at all; what is read is checked by hash first.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import psutil
import safetensors.numpy
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from qkvbench.backends import Learner, Stateful, Together
from qkvbench.data.cache import sha256_of
from qkvbench.experiment import Experiment, alone, from_json
from qkvbench.results.record import Machine, Point, Snapshot
from qkvbench.train.stopping import Stopping
from qkvbench.train.trained import Trained

_STATE, _PROGRESS, _SUMS = "state.safetensors", "progress.json", "SHA256SUMS"
_STALE_S = 24 * 3600

_log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint cannot be written; the message names its path and size, and says why."""


class Progress(BaseModel):
    """Where the loop was and what it had seen, beside the numbers of the learner."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    schema_version: Literal[1] = 1
    experiment: dict[str, Any]
    step: int
    curve: list[Point]
    snapshots: list[Snapshot]
    solved_step: int | None
    step_s: list[float]
    started: str
    train_s: float
    compile_s: float | None
    resumed: list[int]
    other_devices: list[str] = []
    machine: Machine


class Checkpoint(NamedTuple):
    """One that was read and is whole."""

    folder: Path
    progress: Progress
    state: dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoints:
    """Where runs keep their last `keep` checkpoints: `root/<id>/step-<n>`, one every so often.

    A run that is over before ``every_s`` writes none, unless it is asked to stop. Where a state is
    so large that saving would take more than this ``share`` of a run, it is kept less often.
    """

    root: Path
    every_s: float = 30.0
    keep: int = 2
    share: float = 0.05

    def folder(self, experiment: Experiment) -> Path:
        """Where the checkpoints of this run are."""
        return self.root / experiment.id

    def found(self, experiment: Experiment) -> Iterator[Checkpoint]:
        """The checkpoints of this run that are whole, newest first.

        A damaged one is set aside as `*.corrupt`, and the log says which file and why. What a dead
        process left half written is removed.
        """
        folder = self.folder(experiment)
        _clear_stale(folder)
        for place in sorted(folder.glob("step-*[0-9]"), reverse=True):
            try:
                yield _read(place, experiment)
            except (ValueError, OSError) as error:
                self.set_aside(place, str(error))

    def set_aside(self, place: Path, reason: str) -> None:
        """Keep a checkpoint that cannot be used under a name that nobody reads, and say so."""
        aside = place.with_name(f"{place.name}.{secrets.token_hex(2)}.corrupt")
        with suppress(OSError):
            place.rename(aside)
        _log.warning("%s cannot be used and is now %s: %s", place, aside.name, reason)

    def elsewhere(self, experiment: Experiment) -> Iterator[Checkpoint]:
        """Those of the same run on other devices, newest first; nothing there is changed."""
        for place in sorted(
            self.root.glob("*/step-*[0-9]"), key=lambda place: place.name, reverse=True
        ):
            if place.parent != self.folder(experiment):
                with suppress(ValueError, OSError):
                    yield _read(place, experiment)

    def save(self, experiment: Experiment, progress: Progress, learner: Stateful) -> Path:
        """Keep this moment of a run, and let go of those that are too many.

        Raises CheckpointError where it cannot be written; those before it stay as they are. Of
        several processes all call it, each writes what it holds, and the first sees to the rest.
        """
        folder = self.folder(experiment)
        place = folder / f"step-{progress.step:09d}"
        size = sum(array.nbytes for array in learner.state().values())
        failed = None
        try:
            _write(place, progress, learner)
        except (OSError, SafetensorError) as error:
            failed = error
        if _agreement(learner)(asked=failed is not None):
            why = (isinstance(failed, OSError) and failed.strerror) or failed
            raise CheckpointError(
                f"The checkpoint {place} of {size} bytes cannot be written: {why}. "
                "Make room or give leave to write there; the same command goes on from the one "
                "before it."
            ) from failed
        if _first(learner):
            for old in sorted(folder.glob("step-*[0-9]"))[: -self.keep]:
                _remove(old)
        return place

    def remove(self, experiment: Experiment) -> None:
        """Let go of all that is kept for a run whose record is written."""
        shutil.rmtree(self.folder(experiment), ignore_errors=True)
        # Gone with the last run; another may be putting its own there.
        with suppress(OSError):
            self.root.rmdir()


def taken_up(
    place: Checkpoints, experiment: Experiment, learner: Learner, trained: Trained, here: Machine
) -> Progress | None:
    """Go on from the newest checkpoint that can be used; None where the run begins anew.

    It begins anew, too, where every one is damaged: its result is the same, and only time is lost.
    """
    found = _restored(place, experiment, learner)
    if found is not None:
        folder, progress, _ = found
        trained.step = progress.step
        trained.curve[:] = progress.curve
        trained.snapshots[:] = progress.snapshots
        trained.solved_step = progress.solved_step
        trained.step_s[:] = progress.step_s
        trained.compile_s = trained.compiled_before_s = progress.compile_s
        trained.resumed[:] = [*progress.resumed, progress.step]
        trained.other_devices[:] = progress.other_devices
        before = from_json(progress.experiment)
        if before.id != experiment.id:
            trained.other_devices.append(_spread(before))
            _log.warning(
                "%s is of this run on %s: it goes on from there on %s, with other bits than one "
                "that began here.",
                folder,
                _spread(before),
                _spread(experiment),
            )
        for what in ("device", "platform", "versions", "code"):
            then, now = getattr(progress.machine, what), getattr(here, what)
            if then != now:
                _log.warning(
                    "%s goes on with another %s, so its bits may differ: %s before, %s now.",
                    folder,
                    what,
                    then,
                    now,
                )
        return progress
    if any(place.folder(experiment).glob("*.corrupt")):
        _log.warning("No checkpoint in %s can be used: it begins anew.", place.folder(experiment))
    _tell_of_other_threads(place, experiment)
    return None


def _restored(place: Checkpoints, experiment: Experiment, learner: Learner) -> Checkpoint | None:
    """The newest checkpoint that can be used, given to the learner; None where there is none.

    Of several processes the first chooses, and checks it by hash; the others read the same.
    """
    found = _chosen(place, experiment, learner) if _first(learner) else None
    told = _told(learner, str(found.folder) if found else "")
    if not told or _first(learner):
        return found
    found = _read(Path(told), experiment)
    learner.restore(found.state)
    return found


def _chosen(place: Checkpoints, experiment: Experiment, learner: Learner) -> Checkpoint | None:
    for found in place.found(experiment):
        try:
            learner.restore(found.state)
        except ValueError as error:
            place.set_aside(found.folder, f"it is of another learner: {error}")
            continue
        return found
    for found in place.elsewhere(experiment):
        with suppress(ValueError):
            learner.restore(found.state)
            return found
    return None


@contextmanager
def kept_on_the_way(
    place: Checkpoints, experiment: Experiment, learner: Learner, told: Callable[[], Progress]
) -> Iterator[Callable[[], None]]:
    """What a loop calls when a step is over: it keeps what `told` says, now and then.

    Where the process is asked to end, it does so there, with a checkpoint.
    """
    # Found out once: looking through a protocol takes longer than all else of a step without one.
    agreed = _agreement(learner)
    with Stopping() as stopping:
        due_s = time.monotonic() + place.every_s

        def reached() -> None:
            nonlocal due_s
            due = stopping.asked is not None or time.monotonic() >= due_s
            if not agreed(asked=due):
                return
            began_s = time.monotonic()
            if agreed(asked=stopping.asked is not None):
                # Any of several processes may have been asked alone.
                stopping.asked = stopping.asked or signal.SIGTERM
            try:
                _keep(place, experiment, told(), learner)
            except CheckpointError as error:
                if not stopping.asked:
                    raise
                _log.warning("%s", error)
            stopping.end_if_asked()
            ended_s = time.monotonic()
            due_s = ended_s + max(place.every_s, (ended_s - began_s) / place.share)

        yield reached


def _keep(
    place: Checkpoints, experiment: Experiment, progress: Progress, learner: Stateful
) -> None:
    """Keep the moment, unless the last step spoiled it: the next one will end the run then."""
    spoiled = [
        name
        for name, array in learner.state().items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if spoiled:
        _log.warning("After step %d %s is not finite: not kept.", progress.step, spoiled[0])
    if not _agreement(learner)(asked=bool(spoiled)):
        place.save(experiment, progress, learner)


def _write(place: Path, progress: Progress, learner: Stateful) -> None:
    """Put the checkpoint at its place in one step: write beside it, flush to disk, rename."""
    text = json.dumps(progress.model_dump(mode="json"), allow_nan=False)
    name = f".{place.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    beside = place.with_name(_told(learner, name))
    try:
        if _first(learner):
            beside.mkdir(parents=True)
        _write_state(learner, beside)
        if not _first(learner):
            return
        (beside / _PROGRESS).write_text(text, encoding="utf-8")
        names = sorted(path.name for path in beside.iterdir())
        sums = {name: sha256_of(beside / name) for name in names}
        (beside / _SUMS).write_text(_manifest(sums), encoding="utf-8")
        for path in (*(beside / name for name in names), beside / _SUMS, beside):
            _flush(path)
        _put(beside, place)
    except BaseException:
        # An interrupt, too, must leave no half of a checkpoint behind.
        if _first(learner):
            shutil.rmtree(beside, ignore_errors=True)
        raise
    # The rename itself is on disk only when the folder is.
    _flush(place.parent)


def _write_state(learner: Stateful, folder: Path) -> None:
    """Write the state: in one file, or what each of several processes holds in one of its own."""
    match learner:
        case Together(count=count) if count > 1:
            learner.save_state(folder)
        case _:
            safetensors.numpy.save_file(learner.state(), folder / _STATE)


def _first(learner: Stateful) -> bool:
    """Whether this process sees to what one alone must do."""
    return not isinstance(learner, Together) or learner.rank == 0


class _Agreement(Protocol):
    def __call__(self, *, asked: bool) -> bool: ...


def _agreement(learner: Stateful) -> _Agreement:
    """How to find out whether it is asked for here, or in any process that learns with this one."""
    return learner.agreed if isinstance(learner, Together) else _alone


def _alone(*, asked: bool) -> bool:
    return asked


def _told(learner: Stateful, text: str) -> str:
    """The text of the first process that learns with this one."""
    return learner.told(text) if isinstance(learner, Together) else text


def _spread(experiment: Experiment) -> str:
    if experiment.devices == 1:
        return "1 device"
    return f"{experiment.devices} devices by {experiment.sharding}"


def _manifest(sums: dict[str, str]) -> str:
    return "".join(f"{each}  {name}\n" for name, each in sums.items())


def _put(beside: Path, place: Path) -> None:
    """Rename; what is there of the same step has the same bits, and is replaced all the same."""
    if place.exists():
        _remove(place)
    beside.rename(place)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(place: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it looks like one."""
    going = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}.going.tmp")
    with suppress(OSError):
        place.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _clear_stale(folder: Path) -> None:
    """Remove what a process left half written that is dead, or on another machine a day ago."""
    for path in folder.glob(".step-*.tmp"):
        # A machine's name may have dots in it.
        owner, pid, _ = path.name.removesuffix(".tmp").rsplit(".", 2)
        with suppress(OSError, ValueError):
            dead = owner.endswith(f".{socket.gethostname()}") and not psutil.pid_exists(int(pid))
            if dead or time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _read(place: Path, experiment: Experiment) -> Checkpoint:
    """The checkpoint at a place; ValueError or OSError says what is wrong with it."""
    told = (place / _SUMS).read_text(encoding="utf-8")
    listed = {Path(line.partition("  ")[2]).name for line in told.splitlines()}
    names = sorted({_PROGRESS, *listed, *(path.name for path in place.iterdir())} - {_SUMS, ""})
    content = {name: (place / name).read_bytes() for name in names}
    found = {name: sha256(read).hexdigest() for name, read in content.items()}
    for name, each in found.items():
        if each not in told:
            raise ValueError(f"the SHA-256 of {name} is {each}, which {_SUMS} does not say.")
    if told != _manifest(found):
        raise ValueError(f"{_SUMS} is not the list of {' and '.join(found)} that was written.")
    progress = Progress.model_validate_json(content.pop(_PROGRESS))
    other = from_json(progress.experiment)
    if alone(other).id != alone(experiment).id:
        raise ValueError(f"it is of the run {other.id}, not of this one.")
    return Checkpoint(place, progress, joined(content))


def joined(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The arrays in the files, whole: what several processes held in parts is put together.

    The head of such a file says where its parts belong, as torch.distributed.checkpoint writes it.
    """
    pieces: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for name, content in files.items():
        try:
            arrays = safetensors.numpy.load(content)
        except SafetensorError as error:
            raise ValueError(f"{name} is no safetensors file: {error}.") from error
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        placed = json.loads(head.get("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for each, array in arrays.items():
            first = placed.get(each, {}).get("saved_offsets", [0] * array.ndim)
            pieces.setdefault(each, []).append((first, array))
    return {name: _whole(name, each) for name, each in pieces.items()}


def _whole(name: str, pieces: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    """One array of its pieces, each with the place of its first number; ValueError at a hole."""
    if len(pieces) == 1 and not any(pieces[0][0]):
        return pieces[0][1]
    ends = [np.add(first, piece.shape) for first, piece in pieces]
    whole = np.empty(np.max(ends, axis=0), pieces[0][1].dtype)
    if whole.size != sum(piece.size for _, piece in pieces):
        raise ValueError(f"a part of {name} is missing.")
    for first, piece in pieces:
        whole[tuple(map(slice, first, np.add(first, piece.shape)))] = piece
    return whole


def _tell_of_other_threads(place: Checkpoints, experiment: Experiment) -> None:
    """Say so where this run was under way with another number of threads, which is another run."""
    for path in place.root.glob(f"*/step-*[0-9]/{_PROGRESS}"):
        with suppress(ValueError, OSError):
            other = from_json(json.loads(path.read_bytes())["experiment"])
            if other != experiment and replace(other, threads=experiment.threads) == experiment:
                _log.warning(
                    "%s is of this run with threads: %d. It is not used, since sums in another "
                    "order have other bits: with threads: %d the run begins anew.",
                    path.parent,
                    other.threads,
                    experiment.threads,
                )
                return
