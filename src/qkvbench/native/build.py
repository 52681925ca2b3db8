"""Compiles the library: one object for each instruction set (ISA), by any C++ compiler.

Run     python -m qkvbench.native

Only changed files are compiled again. This module imports the standard library alone, since `qkv`
and setup.py run it before anything else is installed.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "cpp"
LIBRARY = "_kernels.so"

COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"]
# Fused multiply-adds: one instruction and one rounding.
COMMON += ["-ffp-contract=fast"]
# gcc's AVX-512 headers use uninitialized vectors.
COMMON += ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# Flags by file: on x86, then on any processor.
X86 = {
    "isa_avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "isa_avx512": AVX512,
    "isa_avx2": AVX2,
}
PORTABLE: dict[str, list[str]] = {"isa_portable": [], "decode": [], "pool": []}


class BuildError(Exception):
    """The library cannot be built; the text says why, and what would help."""


def sources_hash() -> str:
    """A hash of all sources; the library contains it, so an outdated one is recognized."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.iterdir(), Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, the system's, or that of the package ziglang."""
    if command := os.environ.get("CXX"):
        return command.split()
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise BuildError("there is no C++ compiler; install g++, clang or the package ziglang")


def is_x86_here() -> bool:
    """Whether this machine is one of `X86`."""
    return platform.machine().lower() in ("x86_64", "amd64")


def x86_here() -> dict[str, list[str]]:
    """The files of `X86` whose instructions this processor has; all of them if it does not say."""
    if not is_x86_here():
        return {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return X86
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    # The kernel's names have underscores that the compiler's have not: avx512_bf16.
    present = set(lines[0].replace("_", "").split()) if lines else set[str]()
    return {
        name: flags
        for name, flags in X86.items()
        if present.issuperset(flag.removeprefix("-m") for flag in flags)
    }


def build(
    into: Path = HERE, objects: Path | None = None, x86: Mapping[str, list[str]] | None = None
) -> Path:
    """Build the library in the folder `into`, unless it is up to date, and return its path.

    A library for other machines has all ISAs of `X86`, without `x86` if this is one of them; one
    for this machine needs only `x86_here`. If another process is building it, wait for that one.
    Raises BuildError.
    """
    if os.name != "posix":
        raise BuildError(f"there is no build for {platform.system()}")
    try:
        return _build(into, objects, (X86 if is_x86_here() else {}) if x86 is None else x86)
    except OSError as error:
        where = error.filename or into
        raise BuildError(f"{where} cannot be written: {error.strerror}") from error


def _build(into: Path, objects: Path | None, x86: Mapping[str, list[str]]) -> Path:
    # What takes longest begins first.
    files = dict(x86) | PORTABLE
    library, stamp = into / LIBRARY, " ".join([sources_hash(), *files])
    if _is_built(library, stamp):
        return library
    objects = objects or into / "_objects"
    objects.mkdir(parents=True, exist_ok=True)
    with alone(objects):
        if _is_built(library, stamp):
            return library
        command = compiler()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(_compile, command, name, flags, objects, stamp)
                for name, flags in files.items()
            ]
            compiled = [str(job.result()) for job in jobs]
        # Beside the library: the objects may be on another file system.
        new = into / f".{LIBRARY}.{os.getpid()}"
        _run([*command, "-shared", "-pthread", *compiled, "-o", str(new)])
        # Replace the file, do not rewrite it: a process may have the old library mapped.
        new.replace(library)
    return library


def main() -> None:
    """Build the library for this machine; exit with the reason if that fails."""
    try:
        sys.stdout.write(f"{build(x86=x86_here())}\n")
    except BuildError as error:
        sys.exit(f"The native kernel is not built: {error}.")


def _is_built(library: Path, stamp: str) -> bool:
    return library.exists() and stamp.encode() in library.read_bytes()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is in such a block for the folder: an ended process never is."""
    import fcntl  # POSIX has it

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(
    command: Sequence[str], name: str, flags: Sequence[str], objects: Path, stamp: str
) -> Path:
    """The object of one file; a cached one if sources and command are the same."""
    source = SOURCES / f"{name}.cpp"
    arguments = [*command, *COMMON, *flags]
    key = hashlib.sha256(" ".join(arguments).encode())
    for path in sorted([source, *SOURCES.glob("*.h")]):
        key.update(path.read_bytes())
    if name == "decode":
        arguments.append(f'-DQKV_SOURCES="{stamp}"')
        key.update(stamp.encode())
    compiled = objects / f"{name}-{key.hexdigest()[:16]}.o"
    if not compiled.exists():
        for old in objects.glob(f"{name}-*.o"):
            old.unlink()
        part = compiled.with_suffix(".part")
        _run([*arguments, "-c", str(source), "-o", str(part)])
        part.replace(compiled)
    return compiled


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise BuildError(f"{command[0]} failed: {lines[0].strip()[:300]}")


if __name__ == "__main__":
    main()
