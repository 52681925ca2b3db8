"""Decoding on a CPU by kernels of our own: what a step reads, it reads once and as fast as it can.

A cached row is a key and a value at once; a weight is multiplied with all rows of a step.

It is a library that is built where there is a compiler. Where there is none, `lacking` says why,
and whoever asks goes on without.
"""

from qkvbench.native.decode import CAPABILITIES, KINDS, Capabilities, Decoding, Kind, Rows, Turns
from qkvbench.native.library import UnavailableError, lacking, target, targets
from qkvbench.native.product import MOST_ROWS, WEIGHTS, product

__all__ = [
    "CAPABILITIES",
    "KINDS",
    "MOST_ROWS",
    "WEIGHTS",
    "Capabilities",
    "Decoding",
    "Kind",
    "Rows",
    "Turns",
    "UnavailableError",
    "lacking",
    "product",
    "target",
    "targets",
]
