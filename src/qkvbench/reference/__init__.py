"""NumPy attention: the reference for every backend."""

from qkvbench.reference.attention import (
    Layer,
    absorb_into_output,
    absorb_into_query,
    apply,
    attend,
    bias,
    decode,
    forward,
    head_map,
    joined,
    make,
    output,
    position_features,
    project,
    rope,
    rotation,
)

__all__ = [
    "Layer",
    "absorb_into_output",
    "absorb_into_query",
    "apply",
    "attend",
    "bias",
    "decode",
    "forward",
    "head_map",
    "joined",
    "make",
    "output",
    "position_features",
    "project",
    "rope",
    "rotation",
]
