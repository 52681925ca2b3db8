"""Where results are kept: one strict JSON file for each run, written whole or not at all."""

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from qkvbench.experiment import Experiment, from_json, to_json
from qkvbench.results.record import SCHEMA_VERSION, Measurement, Record, StudyInfo
from qkvbench.task_ref import TaskRef

_ID = re.compile(r"[0-9a-f]{16}")
# Writing a record takes milliseconds; what is older was left behind by a killed process.
_STALE_S = 3600
_LARGEST_BYTES = 64 * 10**6

Kept = TypeVar("Kept", bound=BaseModel)


class StoreError(Exception):
    """The folder cannot be used as a store; the message names the path and says why."""


@dataclass(frozen=True)
class Damaged:
    """A file that is not a record, and one sentence that says why. It stays where it is."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Shelf(Generic[Kept]):
    """What a folder holds: the good records in the order of their ids, and the damaged files."""

    good: tuple[Kept, ...]
    damaged: tuple[Damaged, ...]


class Store:
    """A folder of records: `runs/<id>.json`, `measurements/<id>.json` and `study.json`.

    Beside them are the `checkpoints` of runs that are not done. Reading never changes it. Writers
    may be many: a file appears complete, under its final name.
    """

    path: Path

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def claims(self) -> Path:
        """Where it is written who carries out which run; no record is there."""
        return self.path / "claims"

    @property
    def checkpoints(self) -> Path:
        """Where runs under way keep what they need to go on; no record is there."""
        return self.path / "checkpoints"

    def runs(self) -> Shelf[Record]:
        """All runs. StoreError where the folder cannot be read."""
        return self._shelf("runs", _read_run)

    def measurements(self) -> Shelf[Measurement]:
        """All measurements. StoreError where the folder cannot be read."""
        return self._shelf("measurements", _read_measurement)

    def study(self) -> StudyInfo | None:
        """What the store was made for; None where that is missing or damaged."""
        read = _read(self.path / "study.json", _read_study)
        return read if isinstance(read, StudyInfo) else None

    def study_damage(self) -> Damaged | None:
        """Why `study.json` cannot be read; None where it can or is missing."""
        read = _read(self.path / "study.json", _read_study)
        return read if isinstance(read, Damaged) else None

    def damaged(self) -> tuple[Damaged, ...]:
        """Every file in a record's place that is not one."""
        study = self.study_damage()
        first = () if study is None else (study,)
        return (*first, *self.runs().damaged, *self.measurements().damaged)

    def done(self, experiment: Experiment) -> Record | None:
        """The record of this experiment, if it is done.

        The task's version is part of the id. The code's revision is not: a record of another
        revision counts, and the report names the mix.
        """
        read = self.run(experiment)
        return read if read is not None and read.status == "done" else None

    def run(self, experiment: Experiment) -> Record | None:
        """The record of this experiment, however it ended; None where there is none to read."""
        place = self._place("runs", experiment.id)
        read = _read_known(place, experiment) or _read(place, _read_run)
        return read if isinstance(read, Record) else None

    def mark(self, experiment: Experiment) -> tuple[int, int] | None:
        """What changes whenever this experiment's record is written; None where there is none."""
        try:
            found = self._place("runs", experiment.id).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def write_run(self, record: Record) -> Path:
        """Keep the record under its id. One that is done is never replaced by one that is not."""
        expected = from_json(record.experiment).id
        if record.id != expected:
            raise ValueError(f"The record says {record.id}, its experiment is {expected}.")
        place = self._place("runs", record.id)
        before = _read(place, _read_run)
        if isinstance(before, Record) and before.status == "done" and record.status != "done":
            return place
        return self._write(place, record, damaged=isinstance(before, Damaged))

    def write_measurement(self, measurement: Measurement) -> Path:
        """Keep the measurement under its id."""
        place = self._place("measurements", measurement.id)
        before = _read(place, _read_measurement)
        return self._write(place, measurement, damaged=isinstance(before, Damaged))

    def write_study(self, study: StudyInfo) -> Path:
        """Keep what the store is made for, and clear what killed writers left behind."""
        place = self.path / "study.json"
        before = _read(place, _read_study)
        written = self._write(place, study, damaged=isinstance(before, Damaged))
        for folder in (self.path, self.path / "runs", self.path / "measurements"):
            _clear_stale(folder)
        return written

    def _place(self, folder: str, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise ValueError(f"An id is 16 hexadecimal digits, not {name!r}.")
        return self.path / folder / f"{name}.json"

    def _shelf(self, folder: str, check: Callable[[Path, dict[str, Any]], Kept]) -> Shelf[Kept]:
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; a store is a folder.")
        paths = _files(self.path / folder)
        read = [each for path in paths if (each := _read(path, check)) is not None]
        return Shelf(
            good=tuple(each for each in read if not isinstance(each, Damaged)),
            damaged=tuple(each for each in read if isinstance(each, Damaged)),
        )

    def _write(self, place: Path, value: BaseModel, *, damaged: bool) -> Path:
        content = value.model_dump(mode="json")
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, indent=1)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if damaged:
                _move_aside(place)
            _write_whole(place, text.encode() + b"\n")
        except OSError as error:
            raise StoreError(_spoken(error, place, "written")) from error
        return place


def _files(folder: Path) -> list[Path]:
    """The files of a folder that should be records, in order; none where there is no folder."""
    try:
        # Not `glob`, which takes a folder that may not be read for an empty one.
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix == ".json" and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(_spoken(error, folder, "read")) from error


def _write_whole(place: Path, content: bytes) -> None:
    """Put the content at the place in one step: write beside it, flush to disk, rename."""
    beside = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except BaseException:
        # An interrupt, too, must leave no half of a file behind.
        beside.unlink(missing_ok=True)
        raise
    # The rename itself is on disk only when the folder is.
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _move_aside(place: Path) -> None:
    """Keep a damaged file under a name that no reader takes for a record."""
    number = 1
    aside = place.with_name(f"{place.name}.damaged")
    while aside.exists():
        number += 1
        aside = place.with_name(f"{place.name}.{number}.damaged")
    # Another writer may have moved it first.
    with suppress(FileNotFoundError):
        place.rename(aside)


def _clear_stale(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _read(path: Path, check: Callable[[Path, dict[str, Any]], Kept]) -> Kept | Damaged | None:
    """The record in a file; None where there is no file."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return Damaged(path, "It is too large to be a record.")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Damaged(path, f"It cannot be read: {error.strerror}.")
    if not content.strip():
        return Damaged(path, "It is empty.")
    try:
        read: object = json.loads(content.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Damaged(path, f"It is not strict JSON: {error}.")
    if not isinstance(read, dict):
        return Damaged(path, "It is not a JSON object.")
    value = cast(dict[str, Any], read)
    if value.get("schema_version") != SCHEMA_VERSION:
        found = json.dumps(value.get("schema_version"))[:40]
        return Damaged(path, f"Its schema version is {found}; this program reads {SCHEMA_VERSION}.")
    try:
        return check(path, value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        return Damaged(path, f"At {where}: {first['msg']}.")
    except (ValueError, TypeError, RecursionError) as error:
        return Damaged(path, str(error))


def _read_known(path: Path, experiment: Experiment) -> Record | None:
    """The record of a known experiment, in a fifth of the time; None where it is to be looked into.

    It says the very experiment, so nothing has to be made of what it says.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return None
        record = Record.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    if record.id != experiment.id or record.experiment != to_json(experiment):
        return None
    return record if _contradiction(record, experiment) is None else None


def _contradiction(record: Record, experiment: Experiment) -> str | None:
    """Where a record says one thing and its experiment another."""
    for field in ("variant", "task", "task_version", "seed", "backend", "precision", "threads"):
        said, meant = getattr(record, field), getattr(experiment, field)
        meant = str(meant) if isinstance(meant, TaskRef) else meant
        if said != meant:
            return f"Its {field} is {said!r}, but its experiment's is {meant!r}."
    return None


def _read_run(path: Path, value: dict[str, Any]) -> Record:
    record = Record.model_validate(value)
    _check_name(path, record.id)
    experiment = from_json(record.experiment)
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


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _spoken(error: OSError, path: Path, done: str) -> str:
    """What went wrong, for the person whose folder it is."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"{path} cannot be {done}: the disk is full."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{path} cannot be {done}: no permission."
        case errno.ENOTDIR | errno.EEXIST:
            blocker = next((p for p in path.parents if p.exists() and not p.is_dir()), path)
            return f"{path} cannot be {done}: {blocker} is a file; a store is a folder."
        case _:
            return f"{path} cannot be {done}: {error.strerror}."
