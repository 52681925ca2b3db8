"""The library is compiled here: one object for each instruction set, by whatever compiler there is.

Run     python -m qkvbench.native

Only what has changed is compiled again. Nothing but the standard library is imported, since
setup.py runs this file where nothing else is installed yet.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "cpp"
LIBRARY = "_kernels.so"

COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"]
# A product that is added to is one instruction, and one rounding.
COMMON += ["-ffp-contract=fast"]
# gcc's own headers of AVX-512 begin with vectors that hold nothing yet.
COMMON += ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# The flags of each file that has its own, on x86.
X86 = {
    "target_avx2": AVX2,
    "target_avx512": AVX512,
    "target_avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
}
EVERYWHERE: dict[str, list[str]] = {"target_portable": [], "decode": [], "pool": []}


class CannotBuildError(Exception):
    """Why there is no library, and what would help."""


def sources_hash() -> str:
    """What the library is made of; it holds the same text, so that an old one is known."""
    found = hashlib.sha256()
    for path in sorted([*SOURCES.iterdir(), Path(__file__)]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, the system's, or the one of the package ziglang."""
    if named := os.environ.get("CXX"):
        return named.split()
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise CannotBuildError("there is no C++ compiler; install g++, clang or the package ziglang")


def build(into: Path = HERE, objects: Path | None = None) -> Path:
    """The library, made in the folder `into` where it is not up to date.

    CannotBuildError says why it cannot be made.
    """
    if os.name != "posix":
        raise CannotBuildError(f"there is no build for {platform.system()}")
    library, stamp = into / LIBRARY, sources_hash()
    if library.exists() and stamp.encode() in library.read_bytes():
        return library
    objects = objects or into / "_objects"
    objects.mkdir(parents=True, exist_ok=True)
    command = compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    files = EVERYWHERE | (X86 if x86 else {})
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        jobs = [
            at_once.submit(_object, command, name, flags, objects, stamp)
            for name, flags in files.items()
        ]
        made = [str(job.result()) for job in jobs]
    new = objects / LIBRARY
    _run([*command, "-shared", "-pthread", *made, "-o", str(new)])
    # A library in use must not change under who uses it: another takes its name.
    new.replace(library)
    return library


def _object(command: list[str], name: str, flags: list[str], objects: Path, stamp: str) -> Path:
    """One file compiled, unless it was before from the same text by the same command."""
    source = SOURCES / f"{name}.cpp"
    words = [*command, *COMMON, *flags]
    read = [source, *SOURCES.glob("*.h")]
    key = hashlib.sha256(" ".join(words).encode())
    for path in sorted(read):
        key.update(path.read_bytes())
    if name == "decode":
        words.append(f'-DQKV_SOURCES="{stamp}"')
        key.update(stamp.encode())
    made = objects / f"{name}-{key.hexdigest()[:16]}.o"
    if not made.exists():
        for old in objects.glob(f"{name}-*.o"):
            old.unlink()
        part = made.with_suffix(".part")
        _run([*words, "-c", str(source), "-o", str(part)])
        part.replace(made)
    return made


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuildError(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise CannotBuildError(f"{command[0]} failed: {lines[0].strip()[:300]}")
