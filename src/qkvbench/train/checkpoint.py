"""Checkpoints: all that a run needs to resume, with the same bits as a run without interruption.

A checkpoint is a folder of safetensors files and strict JSON, without pickles. It is written to a
temporary folder, flushed to disk and renamed, so it is complete or absent; it is checked by hash
before it is used.
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
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import safetensors.numpy
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from qkvbench.backends import Learner, Stateful
from qkvbench.data.cache import sha256_of
from qkvbench.experiment import Experiment, alone, from_json, to_json
from qkvbench.results.record import Machine, Point, Snapshot
from qkvbench.train.run_state import RunState
from qkvbench.train.stopping import DeferredSignals

_PROGRESS, _SUMS = "progress.json", "SHA256SUMS"
_STALE_S = 24 * 3600

_log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint cannot be written; the message names its path and size, and the reason."""


class Progress(BaseModel):
    """The state of the training loop, beside the arrays of the learner."""

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


def progress_of(experiment: Experiment, state: RunState, machine: Machine) -> Progress:
    """The progress of a run, to be saved in a checkpoint."""
    return Progress(
        experiment=to_json(experiment),
        step=state.step,
        curve=state.curve,
        snapshots=state.snapshots,
        solved_step=state.solved_step,
        step_s=state.step_s,
        started=state.started,
        train_s=state.train_s(),
        compile_s=state.compile_s,
        resumed=state.resumed,
        other_devices=state.other_devices,
        machine=machine,
    )


class Checkpoint(NamedTuple):
    """A complete checkpoint that was read."""

    folder: Path
    progress: Progress
    state: dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` checkpoints of each run, in `root/<id>/step-<n>`.

    One is saved every `every_s` seconds, or less often if saving would take more than this `share`
    of the run. A shorter run saves none, unless it is interrupted.
    """

    root: Path
    every_s: float = 30.0
    keep: int = 2
    share: float = 0.05

    def folder(self, experiment: Experiment) -> Path:
        """The folder of this run's checkpoints."""
        return self.root / experiment.id

    def valid(self, experiment: Experiment) -> Iterator[Checkpoint]:
        """The valid checkpoints of this run, newest first.

        Renames a damaged one to `*.corrupt` and logs the reason. Removes temporary folders of dead
        processes.
        """
        folder = self.folder(experiment)
        _clear_stale(folder)
        for place in sorted(folder.glob("step-*[0-9]"), reverse=True):
            try:
                yield _read(place, experiment)
            except (ValueError, OSError) as error:
                self.set_aside(place, str(error))

    def set_aside(self, place: Path, reason: str) -> None:
        """Rename a checkpoint that cannot be used, so that it is not read again, and log why."""
        aside = place.with_name(f"{place.name}.{secrets.token_hex(2)}.corrupt")
        with suppress(OSError):
            place.rename(aside)
        _log.warning("%s cannot be used and is now %s: %s", place, aside.name, reason)

    def of_other_devices(self, experiment: Experiment) -> Iterator[Checkpoint]:
        """Checkpoints of the same run on other devices, newest first; changes nothing."""
        for place in sorted(
            self.root.glob("*/step-*[0-9]"), key=lambda place: place.name, reverse=True
        ):
            if place.parent != self.folder(experiment):
                with suppress(ValueError, OSError):
                    # What is of another run need not be read whole to be left alone.
                    _ = _progress((place / _PROGRESS).read_bytes(), experiment)
                    yield _read(place, experiment)

    def save(self, experiment: Experiment, progress: Progress, learner: Stateful) -> Path:
        """Save a checkpoint and remove those that are too many; returns its folder.

        CheckpointError if it cannot be written; earlier ones stay. If several processes share the
        run, all call this: each writes its shards, and rank 0 does the rest.
        """
        folder = self.folder(experiment)
        place = folder / f"step-{progress.step:09d}"
        size = sum(array.nbytes for array in learner.state().values())
        failure = None
        try:
            _write(place, progress, learner)
        except (OSError, SafetensorError) as error:
            failure = error
        if learner.world.any_rank(flag=failure is not None):
            why = (isinstance(failure, OSError) and failure.strerror) or failure
            raise CheckpointError(
                f"The checkpoint {place} of {size} bytes cannot be written: {why}. "
                "Free some space or allow writing there; the same command resumes from the "
                "checkpoint before it."
            ) from failure
        if learner.world.rank == 0:
            for old in sorted(folder.glob("step-*[0-9]"))[: -self.keep]:
                _remove(old)
        return place

    def remove(self, experiment: Experiment) -> None:
        """Remove all checkpoints of a run whose record is written."""
        shutil.rmtree(self.folder(experiment), ignore_errors=True)
        # Succeeds for the last run only: `rmdir` needs an empty folder.
        with suppress(OSError):
            self.root.rmdir()


def restore(
    checkpoints: Checkpoints,
    experiment: Experiment,
    learner: Learner,
    state: RunState,
    here: Machine,
) -> None:
    """Resume from the newest valid checkpoint: set `learner` and `state`. A no-op if there is none.

    The run then begins anew, also if all checkpoints are damaged: only time is lost, since the
    result is the same.
    """
    found = _restore_learner(checkpoints, experiment, learner)
    if found is None:
        folder = checkpoints.folder(experiment)
        if any(folder.glob("*.corrupt")):
            _log.warning("No checkpoint in %s can be used: the run begins anew.", folder)
        _warn_of_other_threads(checkpoints, experiment)
        return
    folder, progress, _ = found
    state.step = progress.step
    state.curve[:] = progress.curve
    state.snapshots[:] = progress.snapshots
    state.solved_step = progress.solved_step
    state.step_s[:] = progress.step_s
    state.started = progress.started
    state.earlier_train_s = progress.train_s
    state.compile_s = state.earlier_compile_s = progress.compile_s
    state.resumed[:] = [*progress.resumed, progress.step]
    state.other_devices[:] = progress.other_devices
    before = from_json(progress.experiment)
    if before.id != experiment.id:
        state.other_devices.append(_devices_text(before))
        _log.warning(
            "%s was saved on %s: the run resumes on %s, with other bits than a run that used only "
            "these.",
            folder,
            _devices_text(before),
            _devices_text(experiment),
        )
    for what in ("device", "platform", "versions", "code"):
        then, now = getattr(progress.machine, what), getattr(here, what)
        if then != now:
            _log.warning(
                "%s was saved with another %s, so bits may differ: %s before, %s now.",
                folder,
                what,
                then,
                now,
            )


def _restore_learner(
    checkpoints: Checkpoints, experiment: Experiment, learner: Learner
) -> Checkpoint | None:
    """The newest checkpoint that the learner accepted; None if there is none.

    Rank 0 chooses it and checks it by hash; the other processes read the same.
    """
    first = learner.world.rank == 0
    found = _restore_newest(checkpoints, experiment, learner) if first else None
    folder = learner.world.broadcast(str(found.folder) if found else "")
    if first or not folder:
        return found
    found = _read(Path(folder), experiment)
    learner.restore(found.state)
    return found


def _restore_newest(
    checkpoints: Checkpoints, experiment: Experiment, learner: Learner
) -> Checkpoint | None:
    for found in checkpoints.valid(experiment):
        try:
            learner.restore(found.state)
        except ValueError as error:
            checkpoints.set_aside(found.folder, f"it is of another learner: {error}")
            continue
        return found
    for found in checkpoints.of_other_devices(experiment):
        with suppress(ValueError):
            learner.restore(found.state)
            return found
    return None


@contextmanager
def checkpoint_periodically(
    checkpoints: Checkpoints,
    experiment: Experiment,
    learner: Learner,
    progress: Callable[[], Progress],
) -> Iterator[Callable[[], None]]:
    """A function for the loop to call after each step: it saves `progress` if a checkpoint is due.

    After SIGTERM or Ctrl-C it saves one at once, and ends the process.
    """
    any_rank = learner.world.any_rank
    with DeferredSignals() as signals:
        due_s = time.monotonic() + checkpoints.every_s

        def on_step_end() -> None:
            nonlocal due_s
            due = signals.received is not None or time.monotonic() >= due_s
            if not any_rank(flag=due):
                return
            began_s = time.monotonic()
            if any_rank(flag=signals.received is not None):
                # Another of several processes may have received the signal.
                signals.received = signals.received or signal.SIGTERM
            try:
                _save_if_finite(checkpoints, experiment, progress(), learner)
            except CheckpointError as error:
                if not signals.received:
                    raise
                _log.warning("%s", error)
            signals.end_if_received()
            ended_s = time.monotonic()
            due_s = ended_s + max(checkpoints.every_s, (ended_s - began_s) / checkpoints.share)

        yield on_step_end


def _save_if_finite(
    checkpoints: Checkpoints, experiment: Experiment, progress: Progress, learner: Stateful
) -> None:
    """Save a checkpoint, unless the last step spoiled the state: then the next ends the run."""
    spoiled = [
        name
        for name, array in learner.state().items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if spoiled:
        _log.warning("After step %d %s is not finite: not saved.", progress.step, spoiled[0])
    if not learner.world.any_rank(flag=bool(spoiled)):
        checkpoints.save(experiment, progress, learner)


def _write(place: Path, progress: Progress, learner: Stateful) -> None:
    """Write a checkpoint in one step: to a temporary folder, flushed to disk, then renamed."""
    text = json.dumps(progress.model_dump(mode="json"), allow_nan=False)
    name = f".{place.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    first, failure = learner.world.rank == 0, None
    if first:
        try:
            place.with_name(name).mkdir(parents=True)
        except OSError as error:
            name, failure = "", error
    # Only now may the others write there: what they write with creates the folder if it is missing.
    name = learner.world.broadcast(name)
    if not name:
        raise failure or OSError("rank 0 could not create its folder")
    temporary = place.with_name(name)
    try:
        learner.save_state(temporary)
        if not first:
            return
        (temporary / _PROGRESS).write_text(text, encoding="utf-8")
        names = sorted(path.name for path in temporary.iterdir())
        sums = {name: sha256_of(temporary / name) for name in names}
        (temporary / _SUMS).write_text(_manifest(sums), encoding="utf-8")
        for path in (*(temporary / name for name in names), temporary / _SUMS, temporary):
            _flush(path)
        _put(temporary, place)
    except BaseException:
        # An interrupt, too, must leave no half of a checkpoint behind.
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    # The rename itself is on disk only when the parent folder is.
    _flush(place.parent)


def _devices_text(experiment: Experiment) -> str:
    if experiment.devices == 1:
        return "1 device"
    return f"{experiment.devices} devices by {experiment.sharding}"


def _manifest(sums: dict[str, str]) -> str:
    return "".join(f"{each}  {name}\n" for name, each in sums.items())


def _put(temporary: Path, place: Path) -> None:
    """Rename to the final place; replaces a checkpoint of the same step and bits."""
    if place.exists():
        _remove(place)
    temporary.rename(place)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(place: Path) -> None:
    """Remove a checkpoint so that a partly removed one is never mistaken for one."""
    doomed = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}.doomed.tmp")
    with suppress(OSError):
        place.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _clear_stale(folder: Path) -> None:
    """Remove temporary folders of processes that are dead, or of other machines after a day."""
    for path in folder.glob(".step-*.tmp"):
        # A host name may contain dots.
        owner, pid, _ = path.name.removesuffix(".tmp").rsplit(".", 2)
        with suppress(OSError, ValueError):
            dead = owner.endswith(f".{socket.gethostname()}") and not psutil.pid_exists(int(pid))
            if dead or time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _read(place: Path, experiment: Experiment) -> Checkpoint:
    """The checkpoint in a folder; ValueError or OSError if it is not valid."""
    sums = (place / _SUMS).read_text(encoding="utf-8")
    listed = {Path(line.partition("  ")[2]).name for line in sums.splitlines()}
    names = sorted({_PROGRESS, *listed, *(path.name for path in place.iterdir())} - {_SUMS, ""})
    content = {name: (place / name).read_bytes() for name in names}
    hashes = {name: sha256(read).hexdigest() for name, read in content.items()}
    for name, each in hashes.items():
        if each not in sums:
            raise ValueError(f"the SHA-256 of {name} is {each}, which is not in {_SUMS}.")
    if sums != _manifest(hashes):
        raise ValueError(f"{_SUMS} is not the list of {' and '.join(hashes)} that was written.")
    progress = _progress(content.pop(_PROGRESS), experiment)
    return Checkpoint(place, progress, join_shards(content))


def _progress(content: bytes, experiment: Experiment) -> Progress:
    """The progress of this run; ValueError if it is of another, on any devices."""
    progress = Progress.model_validate_json(content)
    other = from_json(progress.experiment)
    if alone(other).id != alone(experiment).id:
        raise ValueError(f"it is of the run {other.id}, not of this one.")
    return progress


def join_shards(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The full arrays of safetensors files; arrays that several processes sharded are joined.

    The header of a file holds the offsets of its shards, as torch.distributed.checkpoint writes it.
    """
    shards: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for name, content in files.items():
        try:
            arrays = safetensors.numpy.load(content)
        except SafetensorError as error:
            raise ValueError(f"{name} is not a safetensors file: {error}.") from error
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        offsets = json.loads(header.get("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for each, array in arrays.items():
            first = offsets.get(each, {}).get("saved_offsets", [0] * array.ndim)
            shards.setdefault(each, []).append((first, array))
    return {name: _full_array(name, each) for name, each in shards.items()}


def _full_array(name: str, shards: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    """One array of its shards, each with the offset of its first number; ValueError at a gap."""
    if len(shards) == 1 and not any(shards[0][0]):
        return shards[0][1]
    ends = [np.add(first, shard.shape) for first, shard in shards]
    full = np.empty(np.max(ends, axis=0), shards[0][1].dtype)
    if full.size != sum(shard.size for _, shard in shards):
        raise ValueError(f"a part of {name} is missing.")
    for first, shard in shards:
        full[tuple(map(slice, first, np.add(first, shard.shape)))] = shard
    return full


def _warn_of_other_threads(checkpoints: Checkpoints, experiment: Experiment) -> None:
    """Warn if there are checkpoints of this run with another number of threads, not used here."""
    for path in checkpoints.root.glob(f"*/step-*[0-9]/{_PROGRESS}"):
        with suppress(ValueError, OSError):
            other = from_json(json.loads(path.read_bytes())["experiment"])
            if other != experiment and replace(other, threads=experiment.threads) == experiment:
                _log.warning(
                    "%s is of this run with threads: %d. It is not used, because sums in another "
                    "order have other bits: with threads: %d the run begins anew.",
                    path.parent,
                    other.threads,
                    experiment.threads,
                )
                return
