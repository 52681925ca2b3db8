"""NumPy attention: what every backend is held against."""

from qkvbench.reference.attention import (
    apply,
    attend,
    decode,
    forward,
    make,
    merge,
    project,
    rotation,
    turned,
)

__all__ = ["apply", "attend", "decode", "forward", "make", "merge", "project", "rotation", "turned"]
