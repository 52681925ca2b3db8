"""The folder that keeps what was fetched and prepared, for all runs and processes of a user."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path


class DataUnavailableError(Exception):
    """A task's data cannot be had. The message says why and what to do, in at most five lines."""


def cache_folder() -> Path:
    """QKVBENCH_CACHE, or else `qkvbench` in the user's cache; it need not exist."""
    if chosen := os.environ.get("QKVBENCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qkvbench"


@contextmanager
def writing() -> Iterator[Path]:
    """The cache folder, for one process at a time: arms that start together fetch once.

    Raises DataUnavailableError where the folder cannot be made or written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    except (FileExistsError, NotADirectoryError) as error:
        raise DataUnavailableError(
            f"The cache folder cannot be {folder}: {error.filename or folder} is a file.\n"
            "Move that file away, or name another folder: QKVBENCH_CACHE=FOLDER.\n"
            "The tasks digits, sort and recall need no cache."
        ) from error
    except OSError as error:
        raise DataUnavailableError(
            f"The cache folder {folder} cannot be written: {error.strerror or error}.\n"
            "Make room or give leave to write there, or name another: QKVBENCH_CACHE=FOLDER.\n"
            "The tasks digits, sort and recall need no cache."
        ) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; empty where there is no file to read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
