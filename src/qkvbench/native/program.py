"""Builds the program in edge/: one static file that needs no Python and no other library.

The kernels are the objects of the library. ``CXX="aarch64-linux-gnu-g++"`` builds it for another
machine, with the kernels of that machine.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qkvbench.native import build

SOURCE = build.HERE / "edge" / "main.cpp"
# Every function is used or left out; no table of symbols.
LINK = ["-static", "-pthread", "-Wl,--gc-sections", "-s"]


def build_program(out: Path) -> str:
    """Build the program as the file `out`; the machine that it is for. Raises BuildError."""
    command = build.compiler()
    target = _output([*command, "-dumpmachine"]).strip()
    x86 = build.X86 if target.startswith("x86_64") else {}
    with TemporaryDirectory() as folder:
        objects = _objects_folder(target, Path(folder))
        # A library is linked, too, and thrown away: what is needed is its objects.
        build.build(Path(folder), objects, x86)
        made = Path(folder) / out.name
        # A library that is built meanwhile would replace objects.
        with build.alone(objects):
            found = [next(objects.glob(f"{name}-*.o"), None) for name in (*x86, *build.PORTABLE)]
            kernels = [str(each) for each in found if each]
            if len(kernels) < len(found):
                raise build.BuildError("another build replaced the kernels meanwhile; repeat this")
            _output([*command, *build.COMMON, str(SOURCE), *kernels, *LINK, "-o", str(made)])
        # Beside its place first: one that runs is replaced, and nothing unfinished has its name.
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
            whole = Path(beside) / out.name
            whole.write_bytes(made.read_bytes())
            whole.chmod(0o755)
            whole.replace(out)
    return target


def _objects_folder(target: str, temporary: Path) -> Path:
    """The place of objects: the library's for its own compiler, if this package may be written."""
    if not os.access(build.HERE, os.W_OK):
        return temporary / "objects"
    kept = build.HERE / "_objects"
    return kept / target if "CXX" in os.environ else kept


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise build.BuildError(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise build.BuildError(f"{command[0]} failed: {lines[0].strip()[:300]}")
    return done.stdout
