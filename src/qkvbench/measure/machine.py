"""The machine of a record: device, cores, load, versions, and activity of other processes."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from qkvbench.results.record import Machine

# Packages whose versions can change a result.
LIBRARIES = (
    "qkv-ablation-bench",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "numpy",
    "scipy",
    "scikit-learn",
)
# Flags of /proc/cpuinfo, the widest vectors first, and their names.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}


def machine(device: str) -> Machine:
    """This machine, now; `device` is the backend's."""
    return Machine(
        device=device,
        cores=cores(),
        load=round(os.getloadavg()[0], 2),
        platform=f"{_processor()}, {platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **_versions()},
        code=code_revision(),
    )


@dataclass(frozen=True)
class Activity:
    """Processor seconds until a moment: of all processes, and of this one."""

    at_s: float
    all_s: float
    own_s: float


def activity() -> Activity:
    """The counters, now."""
    counted = psutil.cpu_times()
    idle = counted.idle + getattr(counted, "iowait", 0.0) + getattr(counted, "steal", 0.0)
    # The time of virtual guests is already part of user time.
    twice = getattr(counted, "guest", 0.0) + getattr(counted, "guest_nice", 0.0)
    return Activity(time.monotonic(), sum(counted) - idle - twice, time.process_time())


def others(before: Activity, after: Activity) -> float | None:
    """How many cores other processes kept busy in between; None if that is unknown.

    The counters have a resolution of 10 ms, so the interval must be at least 0.2 s.
    """
    wall_s, all_s = after.at_s - before.at_s, after.all_s - before.all_s
    if wall_s < 0.2 or after.all_s == 0:
        return None
    return round(max(0.0, all_s - (after.own_s - before.own_s)) / wall_s, 2)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def code_revision() -> str:
    """The commit of this code, with a + if files differ from it, or the package's version."""
    here = Path(__file__).parent
    try:
        inside = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "..")
    except (OSError, subprocess.CalledProcessError):
        return f"package {_versions().get('qkv-ablation-bench', 'unknown')}"
    return commit + ("+" if inside and changed else "")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _processor() -> str:
    """The processor's model name and widest vectors, if the system has them."""
    try:
        found = processor_named(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found or platform.processor() or "unknown processor"


def processor_named(cpuinfo: str) -> str | None:
    """The processor of such a file, as in AMD EPYC (AVX2); None if it names none.

    Libraries choose by its vectors how they sum, so other vectors give other last bits.
    """
    pairs = (line.partition(":") for line in reversed(cpuinfo.splitlines()))
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    name, flags = fields.get("model name"), fields.get("flags", fields.get("Features", "")).split()
    vectors = next((VECTORS[flag] for flag in VECTORS if flag in flags), None)
    return f"{name} ({vectors})" if name and vectors else name
