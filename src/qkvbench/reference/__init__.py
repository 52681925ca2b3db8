"""NumPy attention: what every backend is held against."""

from qkvbench.reference.attention import (
    NORM_EPS,
    added,
    apply,
    attend,
    cross,
    decode,
    described,
    forward,
    make,
    merge,
    project,
    rotation,
    turned,
)

__all__ = [
    "NORM_EPS",
    "added",
    "apply",
    "attend",
    "cross",
    "decode",
    "described",
    "forward",
    "make",
    "merge",
    "project",
    "rotation",
    "turned",
]
