"""The memory that this process may still take: the machine's, or its container's."""

from pathlib import Path

import psutil

# Where Linux shows the limits of a container (cgroup v2).
GROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Free memory of this machine, or up to the limit of the container.

    Files that were read count as used by the container until their memory is wanted; they are not.
    """
    free = psutil.virtual_memory().available
    try:
        limit = _limit_bytes()
        used = int((GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = dict(line.split() for line in lines).get("inactive_file", "0")
        return min(free, max(0, limit - used + int(files)))
    except (OSError, ValueError):
        # No limit, or "max".
        return free


def total_bytes() -> int:
    """The memory of this machine, or the limit of the container."""
    total = psutil.virtual_memory().total
    try:
        return min(total, _limit_bytes())
    except (OSError, ValueError):
        return total


def _limit_bytes() -> int:
    return int((GROUP / "memory.max").read_text(encoding="ascii"))
