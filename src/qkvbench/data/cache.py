"""The cache folder: fetched and prepared data, for all runs and processes of a user."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import file_digest
from pathlib import Path
from typing import TypeVar

Source = TypeVar("Source")

# Hashes of the files of a prepared folder, written last: a folder without them is made again.
_SUMS = "SHA256SUMS"
# Prepared folders whose files were found to have their sums, by the state of these.
_WHOLE: set[tuple[Path, tuple[tuple[str, int, int, int], ...]]] = set()

# True in the thread that holds the lock: taking it twice would be a deadlock.
_writes: ContextVar[bool] = ContextVar("writes", default=False)


class DataUnavailableError(Exception):
    """A task's data are not available. The message says why and what to do, in five lines."""


class DataRefusedError(Exception):
    """A person's data or tokenizer cannot be used. The message says why, and what can be.

    It has at most five lines.
    """


def cache_folder() -> Path:
    """QKVBENCH_CACHE, or else `qkvbench` in the user's cache; it need not exist."""
    if chosen := os.environ.get("QKVBENCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qkvbench"


def check_usable() -> None:
    """Raise DataUnavailableError if the cache folder is a file, or is empty and cannot be written.

    One that cannot be written may have all data that are needed.
    """
    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir():
        raise _in_the_way(folder, existing)
    holds_data = existing == folder and os.access(folder, os.R_OK) and any(folder.iterdir())
    if not holds_data and not os.access(existing, os.W_OK | os.X_OK):
        raise _not_writable(folder, "no permission")


# What NumPy says of a disk on which an array has no room, in an error without a number.
NUMPY_DISK_FULL = re.compile(r"\d+ requested and \d+ written")


@contextmanager
def writing() -> Iterator[Path]:
    """The cache folder, locked: of runs that start together one fetches.

    The lock is reentrant, since one prepared folder may be made from another.

    Raises DataUnavailableError if the folder cannot be made or written.
    """
    folder = cache_folder()
    if _writes.get():
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            token = _writes.set(True)
            try:
                yield folder
            finally:
                _writes.reset(token)
    except (FileExistsError, NotADirectoryError) as error:
        raise _in_the_way(folder, error.filename or folder) from error
    except OSError as error:
        if error.errno is None and not NUMPY_DISK_FULL.search(str(error)):
            # Of a library that reads data, such as an image that is none.
            raise
        raise _not_writable(folder, error.strerror or error) from error


def _in_the_way(folder: Path, file: object) -> DataUnavailableError:
    return DataUnavailableError(
        f"The cache folder cannot be {folder}: {file} is a file.\n"
        "Move that file away, or name another folder: QKVBENCH_CACHE=FOLDER.\n"
        "The tasks digits, sort and recall need no cache."
    )


def _not_writable(folder: Path, reason: object) -> DataUnavailableError:
    return DataUnavailableError(
        f"The cache folder {folder} cannot be written: {reason}.\n"
        "Make room or give leave to write there, or name another: QKVBENCH_CACHE=FOLDER.\n"
        "The tasks digits, sort and recall need no cache."
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; empty if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def lookup(name: str) -> Path | None:
    """The prepared folder `name`, if it is there, complete and undamaged."""
    folder = cache_folder() / name
    return folder if _is_whole(folder) else None


def keep(name: str, make: Callable[[Path], None]) -> Path:
    """The prepared folder `name`, filled by `make` unless another process was faster.

    Raises DataUnavailableError if the cache cannot be written.
    """
    with writing() as cache:
        folder = lookup(name)
        if folder is None:
            folder = cache / name
            with replacing(folder) as making:
                make(making)
                (making / _SUMS).write_text(_sums(making), encoding="utf-8")
    return folder


def prepare_once(
    name: str, read: Callable[[], Source], make: Callable[[Source, Path], None]
) -> Path:
    """The prepared folder `name`, made on first use from what `read` returns.

    `read` runs before the cache is locked: it may take the lock itself, to fetch a wheel.
    """
    if folder := lookup(name):
        return folder
    source = read()
    return keep(name, lambda making: make(source, making))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """A lock on `name` alone, for work of minutes during which the cache stays open to others.

    Raises DataUnavailableError if the cache cannot be written.
    """
    with writing() as folder:
        place = folder / f"{name}.lock"
        place.touch()
    with place.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def identity_of(folder: Path) -> str:
    """A hash of the content of a prepared folder."""
    return sha256_of(folder / _SUMS)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` if the block ends without an error."""
    making = folder.with_name(folder.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        yield making
        shutil.rmtree(folder, ignore_errors=True)
        making.replace(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether all files have their sums, which are computed once for each state of the folder."""
    try:
        state = (folder, tuple(sorted(_mark(path) for path in folder.iterdir())))
        if state not in _WHOLE and (folder / _SUMS).read_text(encoding="utf-8") != _sums(folder):
            return False
    except OSError:
        return False
    _WHOLE.add(state)
    return True


def _mark(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns, status.st_ino


def _sums(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.name != _SUMS)
    return "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
