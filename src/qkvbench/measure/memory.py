"""Memory in use on the device of a backend, and its peak."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from qkvbench.backends import Backend

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory(backend: Backend) -> int:
    """Bytes in use now on the accelerator, or by this process; resets the peak."""
    held = backend.reset_peak_memory()
    if held is not None:
        return held
    with suppress(OSError):
        # Writing 5 resets the high-water mark to the current level (Linux, proc(5)).
        _CLEAR.write_text("5", encoding="utf-8")
    return psutil.Process().memory_info().rss


def peak_bytes(backend: Backend) -> int:
    """Peak bytes since `reset_peak_memory`; since the process started if not on Linux."""
    held = backend.peak_bytes()
    if held is not None:
        return held
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
