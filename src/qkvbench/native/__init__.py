"""Decoding on a CPU by a kernel of our own: a cached row is read once, as a key and as a value.

It is a library that is built where there is a compiler. Where there is none, `lacking` says why,
and whoever asks goes on without.
"""

from qkvbench.native.decode import KINDS, Decoding, Kind, Rows, Turns, takes
from qkvbench.native.library import UnavailableError, lacking, target, targets

__all__ = [
    "KINDS",
    "Decoding",
    "Kind",
    "Rows",
    "Turns",
    "UnavailableError",
    "lacking",
    "takes",
    "target",
    "targets",
]
