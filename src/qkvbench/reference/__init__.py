"""NumPy attention: the reference for every backend."""

from qkvbench.reference.attention import (
    NORM_EPS,
    absorb_into_output,
    absorb_into_query,
    apply,
    attend,
    bias,
    decode,
    forward,
    make,
    merge,
    position_features,
    project,
    rope,
    rotation,
)

__all__ = [
    "NORM_EPS",
    "absorb_into_output",
    "absorb_into_query",
    "apply",
    "attend",
    "bias",
    "decode",
    "forward",
    "make",
    "merge",
    "position_features",
    "project",
    "rope",
    "rotation",
]
