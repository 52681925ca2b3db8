"""The library of native kernels, where it was built, and the instruction set that is chosen."""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from qkvbench.native.build import HERE, LIBRARY, sources_hash

# Names a slower target than the fastest, or `none`.
VARIABLE = "QKVBENCH_NATIVE"
NONE = "none"


class UnavailableError(Exception):
    """There is no native kernel here; the text says why, and what would help."""


@cache
def library() -> ctypes.CDLL:
    """The library; UnavailableError where it was not built or does not load."""
    path: Path = HERE / LIBRARY
    if not path.exists():
        raise UnavailableError("not built; `python -m qkvbench.native` builds it or says why")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(f"built for another system: {error}") from error
    # Of other sources, its functions may be others under the same names.
    loaded.qkv_sources.restype = ctypes.c_char_p
    if loaded.qkv_sources().decode() != sources_hash():
        raise UnavailableError("built of other sources; `python -m qkvbench.native` builds it anew")
    loaded.qkv_target.restype = ctypes.c_char_p
    loaded.qkv_target.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    loaded.qkv_decode.restype = ctypes.c_int
    loaded.qkv_decode.argtypes = [ctypes.c_int, ctypes.c_void_p]
    loaded.qkv_product.restype = None
    loaded.qkv_product.argtypes = [ctypes.c_int, ctypes.c_void_p]
    loaded.qkv_read.restype = loaded.qkv_multiply.restype = ctypes.c_float
    loaded.qkv_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    loaded.qkv_multiply.argtypes = [ctypes.c_int, ctypes.c_int64]
    return loaded


@cache
def targets() -> Mapping[str, int]:
    """The targets that this processor runs, the fastest first, by their number in the library."""
    found: dict[str, int] = {}
    runs, number = ctypes.c_int(), 0
    while (name := library().qkv_target(number, ctypes.byref(runs))) is not None:
        if runs.value:
            found[name.decode()] = number
        number += 1
    return found


def target(asked: str | None = None) -> str:
    """The target that is `asked` for, here or by $QKVBENCH_NATIVE; the fastest otherwise.

    UnavailableError where there is none, ValueError where this machine does not run what was asked.
    """
    asked = asked or os.environ.get(VARIABLE) or None
    if asked == NONE:
        raise UnavailableError(f"switched off by {VARIABLE}={NONE}")
    there = targets()
    if asked is None:
        return next(iter(there))
    if asked not in there:
        raise ValueError(
            f"The native target {asked!r} does not run here; use {', '.join(there)} or {NONE}."
        )
    return asked


def lacking() -> str | None:
    """Why there is no native kernel here; None where there is one."""
    try:
        target()
    except (UnavailableError, ValueError) as error:
        return str(error)
    return None
