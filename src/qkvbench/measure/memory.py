"""How much memory this process holds, and how much it held at most."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def level_bytes() -> int:
    """Resident memory of this process now; the highest level is counted from here on."""
    with suppress(OSError):
        # Writing 5 sets the high-water mark back to the present level (Linux, proc(5)).
        _CLEAR.write_text("5")
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The highest level since `level_bytes` on Linux; since the process began elsewhere."""
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
