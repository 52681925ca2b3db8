"""The store of results: one strict JSON file for each run, written atomically."""

import errno
import gc
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from qkvbench.experiment import Experiment, to_json
from qkvbench.results.record import SCHEMA_VERSION, Measurement, Record, StudyInfo
from qkvbench.task_ref import TaskRef

_ID = re.compile(r"[0-9a-f]{16}")
# Writing a record takes milliseconds, so older temporary files are from killed processes.
_STALE_S = 3600
_LARGEST_BYTES = 64 * 10**6

RecordT = TypeVar("RecordT", bound=BaseModel)


class StoreError(Exception):
    """The folder cannot be used as a store; the message has the path and the reason."""


@dataclass(frozen=True)
class Damaged:
    """A file that is not a valid record, and the reason in one sentence. It is not modified.

    ``newer`` if a later version of this program wrote it.
    """

    path: Path
    reason: str
    newer: bool = False


@dataclass(frozen=True)
class FolderContents(Generic[RecordT]):
    """The files of a folder: the good records in the order of their ids, and the damaged files."""

    good: tuple[RecordT, ...]
    damaged: tuple[Damaged, ...]


class Store:
    """A folder of records: `runs/<id>.json`, `measurements/<id>.json` and `study.json`.

    It also has the `checkpoints` of runs that are not done. Reading never changes it. Several
    processes may write at the same time, because a complete file is renamed into place.
    """

    path: Path

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def leases(self) -> Path:
        """The folder of the leases: which process carries out which run. It holds no records."""
        return self.path / "leases"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints of unfinished runs. It has no records."""
        return self.path / "checkpoints"

    def check_writable(self) -> None:
        """Raise StoreError if the folder is a file or cannot be written; it need not exist."""
        self._check_folder()
        existing = next(
            each for each in (self.path, *self.path.absolute().parents) if each.exists()
        )
        if not existing.is_dir():
            raise StoreError(f"{self.path} cannot be made: {existing} is a file.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(f"{self.path} cannot be written: no permission.")

    def make_writable(self) -> None:
        """Make the folder, and write and delete a file in it; StoreError if that fails."""
        self._check_folder()
        probe = self.path / "runs" / f".probe.{os.getpid()}.tmp"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(probe, b"\n")
            probe.unlink()
        except OSError as error:
            raise StoreError(os_error_text(error, probe.parent, "written")) from error

    def runs(self) -> FolderContents[Record]:
        """All runs. StoreError if the folder cannot be read."""
        return self._load_folder("runs", _read_run_file)

    def measurements(self) -> FolderContents[Measurement]:
        """All measurements. StoreError if the folder cannot be read."""
        return self._load_folder("measurements", lambda path: _read(path, _read_measurement))

    def study(self) -> StudyInfo | None:
        """The study of the store; None if `study.json` is missing or damaged."""
        read = _read(self.path / "study.json", _read_study)
        return read if isinstance(read, StudyInfo) else None

    def study_damage(self) -> Damaged | None:
        """The reason that `study.json` cannot be read; None if it can, or is missing."""
        read = _read(self.path / "study.json", _read_study)
        return read if isinstance(read, Damaged) else None

    def damaged(self) -> tuple[Damaged, ...]:
        """Every file under the name of a record that is not a valid one."""
        study = self.study_damage()
        first = () if study is None else (study,)
        return (*first, *self.runs().damaged, *self.measurements().damaged)

    def done(self, experiment: Experiment) -> Record | None:
        """The record of this experiment if it is done.

        The task's version is part of the id. The code's revision is not: a record of another
        revision counts, and the report lists the revisions.
        """
        read = self.run(experiment)
        return read if read is not None and read.status == "done" else None

    def run(self, experiment: Experiment) -> Record | None:
        """The record of this experiment with any status; None if there is no readable one."""
        path = self._path("runs", experiment.id)
        read = _read_matching(path, experiment) or _read(path, _read_run)
        return read if isinstance(read, Record) else None

    def mark(self, experiment: Experiment) -> tuple[int, int] | None:
        """A value that changes whenever this experiment's record is written; None without one."""
        try:
            status = self._path("runs", experiment.id).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def write_run(self, record: Record) -> Path:
        """Write the record under its id. A done record is never replaced by one that is not."""
        expected = record.parsed_experiment.id
        if record.id != expected:
            raise ValueError(f"The record says {record.id}, its experiment is {expected}.")
        path = self._path("runs", record.id)
        before = _read(path, _read_run)
        if isinstance(before, Record) and before.status == "done" and record.status != "done":
            return path
        return self._write(path, record, damaged=isinstance(before, Damaged))

    def write_measurement(self, measurement: Measurement) -> Path:
        """Write the measurement under its id."""
        path = self._path("measurements", measurement.id)
        before = _read(path, _read_measurement)
        return self._write(path, measurement, damaged=isinstance(before, Damaged))

    def write_study(self, study: StudyInfo) -> Path:
        """Write `study.json`, and delete temporary files of killed writers."""
        path = self.path / "study.json"
        before = _read(path, _read_study)
        written = self._write(path, study, damaged=isinstance(before, Damaged))
        for folder in (self.path, self.path / "runs", self.path / "measurements"):
            _clear_stale(folder)
        return written

    def _check_folder(self) -> None:
        """Raise StoreError if the path is a file, or cannot be looked at."""
        try:
            is_file = self.path.exists() and not self.path.is_dir()
        except OSError as error:
            raise StoreError(os_error_text(error, self.path, "read")) from error
        if is_file:
            raise StoreError(f"{self.path} is a file; a store is a folder.")

    def _path(self, folder: str, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise ValueError(f"An id is 16 hexadecimal digits, not {name!r}.")
        return self.path / folder / f"{name}.json"

    def _load_folder(
        self, folder: str, read_file: Callable[[Path], RecordT | Damaged | None]
    ) -> FolderContents[RecordT]:
        self._check_folder()
        paths = _files(self.path / folder)
        with collector_paused():
            read = [each for path in paths if (each := read_file(path)) is not None]
        return FolderContents(
            good=tuple(each for each in read if not isinstance(each, Damaged)),
            damaged=tuple(each for each in read if isinstance(each, Damaged)),
        )

    def _write(self, path: Path, value: BaseModel, *, damaged: bool) -> Path:
        content = value.model_dump(mode="json")
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if damaged:
                _move_aside(path)
            write_atomically(path, text.encode() + b"\n")
        except OSError as error:
            raise StoreError(os_error_text(error, path, "written")) from error
        return path


def _files(folder: Path) -> list[Path]:
    """The files of a folder with names of records, sorted; empty if there is no folder."""
    try:
        # Not `glob`: for a folder without read permission it yields nothing instead of an error.
        names = [each.name for each in os.scandir(folder)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(os_error_text(error, folder, "read")) from error
    return [
        folder / name
        for name in sorted(names)
        if name.endswith(".json") and not name.startswith(".")
    ]


@contextmanager
def collector_paused() -> Generator[None]:
    """No garbage collection meanwhile: it would visit all records, which have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_regular(path: Path) -> bytes:
    """The content of a file; OSError if it is no regular file or larger than any record.

    A pipe has no end to wait for, and a device may have none at all.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody who writes to it.
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(opened, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if status.st_size > _LARGEST_BYTES:
            raise OSError(errno.EFBIG, "it is too large to be a record")
        return file.read(status.st_size)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to disk, and rename it to `path`."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # Also on KeyboardInterrupt: leave no partial file.
        temporary.unlink(missing_ok=True)
        raise
    # The rename is durable only after the folder is flushed.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _move_aside(path: Path) -> None:
    """Rename a damaged file so that it is not read as a record."""
    number = 1
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}.damaged")
    # Another writer may have moved it first.
    with suppress(FileNotFoundError):
        path.rename(aside)


def _clear_stale(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _read(path: Path, check: Callable[[Path, dict[str, Any]], RecordT]) -> RecordT | Damaged | None:
    """The record in a file; None if there is no file."""
    try:
        content = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Damaged(path, f"It cannot be read: {error.strerror}.")
    if not content.strip():
        return Damaged(path, "It is empty.")
    try:
        read: object = json.loads(content.decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        return Damaged(path, f"It is not strict JSON: {error}.")
    if not isinstance(read, dict):
        return Damaged(path, "It is not a JSON object.")
    value = cast(dict[str, Any], read)
    if value.get("schema_version") != SCHEMA_VERSION:
        return _other_schema(path, value.get("schema_version"))
    try:
        return check(path, value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        return Damaged(path, f"At {field}: {first['msg']}.")
    except (ValueError, TypeError, RecursionError) as error:
        return Damaged(path, str(error))


def _other_schema(path: Path, schema: object) -> Damaged:
    """A file whose schema version is not that of this program."""
    reads = f"this program reads {SCHEMA_VERSION}"
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        reason = f"A newer version of this program wrote it: schema {schema}; {reads}. Update it."
        return Damaged(path, reason, newer=True)
    return Damaged(path, f"Its schema version is {json.dumps(schema)[:40]}; {reads}.")


def _read_matching(path: Path, experiment: Experiment) -> Record | None:
    """The record of a known experiment, in a fifth of the time; None if it needs the full check.

    Its experiment is compared as JSON, so that it need not be parsed.
    """
    record = _read_quickly(path)
    if record is None or record.id != experiment.id or record.experiment != to_json(experiment):
        return None
    return record if _contradiction(record, experiment) is None else None


def _read_quickly(path: Path) -> Record | None:
    """The record in a file, of which only the fields are checked; None if they are not valid."""
    try:
        content = read_regular(path)
        # Constants that are not strict JSON may stand where a record takes any value.
        if b"NaN" in content or b"Infinity" in content:
            return None
        return Record.model_validate_json(content)
    except (OSError, ValueError):
        return None


def _contradiction(record: Record, experiment: Experiment) -> str | None:
    """The first field in which a record differs from its experiment, as a sentence."""
    for field in ("variant", "task", "task_version", "seed", "backend", "precision", "threads"):
        value, expected = getattr(record, field), getattr(experiment, field)
        expected = str(expected) if isinstance(expected, TaskRef) else expected
        if value != expected:
            return f"Its {field} is {value!r}, but its experiment's is {expected!r}."
    return None


def _read_run_file(path: Path) -> Record | Damaged | None:
    """The run in a file; None if there is no file."""
    record = _read_quickly(path)
    if record is not None:
        with suppress(ValueError, TypeError, RecursionError):
            return _check_run(path, record)
    # The full check has the reason for which a file is damaged.
    return _read(path, _read_run)


def _read_run(path: Path, value: dict[str, Any]) -> Record:
    return _check_run(path, Record.model_validate(value))


def _check_run(path: Path, record: Record) -> Record:
    """The record, if it says the same as its experiment and its file; otherwise a ValueError."""
    _check_name(path, record.id)
    experiment = record.parsed_experiment
    if experiment.id != record.id:
        raise ValueError(f"Its id is {record.id}, but its experiment's is {experiment.id}.")
    if (contradiction := _contradiction(record, experiment)) is not None:
        raise ValueError(contradiction)
    return record


def _read_measurement(path: Path, value: dict[str, Any]) -> Measurement:
    measurement = Measurement.model_validate(value)
    _check_name(path, measurement.id)
    return measurement


def _read_study(_path: Path, value: dict[str, Any]) -> StudyInfo:
    return StudyInfo.model_validate(value)


def _check_name(path: Path, name: str) -> None:
    if not _ID.fullmatch(name) or path.name != f"{name}.json":
        raise ValueError(f"Its id is {name!r}, which is not its file's name.")


def _reject_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def os_error_text(error: OSError, path: Path, verb: str) -> str:
    """The error as a sentence for the user; `verb` is read or written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"{path} cannot be {verb}: the disk is full."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{path} cannot be {verb}: no permission."
        case errno.ENOTDIR | errno.EEXIST:
            blocker = next((p for p in path.parents if p.exists() and not p.is_dir()), path)
            return f"{path} cannot be {verb}: {blocker} is a file; a store is a folder."
        case _:
            return f"{path} cannot be {verb}: {error.strerror}."
