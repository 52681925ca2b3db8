"""How much memory is held where a backend computes, and how much was held at most."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from qkvbench.backends import Backend

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory(backend: Backend) -> int:
    """Memory held now, on the accelerator or by this process; the peak counts from here on."""
    held = backend.reset_peak_memory()
    if held is not None:
        return held
    with suppress(OSError):
        # Writing 5 sets the high-water mark back to the present level (Linux, proc(5)).
        _CLEAR.write_text("5")
    return psutil.Process().memory_info().rss


def peak_bytes(backend: Backend) -> int:
    """The highest level since `level_bytes`; for a process not on Linux, since it began."""
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
