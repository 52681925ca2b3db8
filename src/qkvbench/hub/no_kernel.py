"""The place of the native kernel in a saved folder, which has no compiled library.

`qkvbench.hub.code` copies this file; the package itself imports `qkvbench.hub.decoding`.
"""

from typing import Any


class KernelAttention:
    """A kernel that is never wanted, so that torch's operations are used."""

    def __init__(self, plan: Any) -> None:
        """No-op."""

    def is_wanted(self, *_: Any) -> bool:
        """No."""
        return False

    def grow(self, *_: Any) -> None:
        """No-op."""
