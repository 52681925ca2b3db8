"""The library of native kernels, and the choice of an instruction set (ISA)."""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from qkvbench.native.build import HERE, LIBRARY, sources_hash

# Names a slower ISA than the fastest, or `none`.
VARIABLE = "QKVBENCH_NATIVE"
NONE = "none"


class UnavailableError(Exception):
    """No native kernel can run; the text says why, and what would help."""


@cache
def library() -> ctypes.CDLL:
    """The loaded library; UnavailableError if it is not built, is outdated, or does not load."""
    path: Path = HERE / LIBRARY
    if not path.exists():
        raise UnavailableError("not built; `python -m qkvbench.native` builds it or says why")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(f"built for another system: {error}") from error
    # A library of other sources may have other functions under the same names.
    loaded.qkv_sources.restype = ctypes.c_char_p
    if loaded.qkv_sources().decode().split()[0] != sources_hash():
        raise UnavailableError("built from other sources; `python -m qkvbench.native` rebuilds it")
    loaded.qkv_isa.restype = ctypes.c_char_p
    loaded.qkv_isa.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    loaded.qkv_decode.restype = ctypes.c_int
    loaded.qkv_decode.argtypes = [ctypes.c_int, ctypes.c_void_p]
    loaded.qkv_linear.restype = None
    loaded.qkv_linear.argtypes = [ctypes.c_int, ctypes.c_void_p]
    loaded.qkv_read.restype = loaded.qkv_multiply.restype = ctypes.c_float
    loaded.qkv_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    loaded.qkv_multiply.argtypes = [ctypes.c_int, ctypes.c_int64]
    return loaded


@cache
def supported_isas() -> Mapping[str, int]:
    """The ISAs that this processor runs, fastest first, with their indices in the library."""
    isas: dict[str, int] = {}
    supported, index = ctypes.c_int(), 0
    while (name := library().qkv_isa(index, ctypes.byref(supported))) is not None:
        if supported.value:
            isas[name.decode()] = index
        index += 1
    return isas


def select_isa(requested: str | None = None) -> str:
    """The requested ISA, by argument or by $QKVBENCH_NATIVE; else the fastest.

    UnavailableError if there is no kernel, ValueError if this machine does not run the ISA.
    """
    requested = requested or os.environ.get(VARIABLE) or None
    if requested == NONE:
        raise UnavailableError(f"switched off by {VARIABLE}={NONE}")
    isas = supported_isas()
    if requested is None:
        return next(iter(isas))
    if requested not in isas:
        raise ValueError(
            f"The native ISA {requested!r} does not run here; use {', '.join(isas)} or {NONE}."
        )
    return requested


def missing_requirement() -> str | None:
    """The reason why no native kernel can run; None if one can."""
    try:
        select_isa()
    except (UnavailableError, ValueError) as error:
        return str(error)
    return None
