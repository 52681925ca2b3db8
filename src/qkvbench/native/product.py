"""A few rows times a matrix of weights that are read once, by the native library.

Tensors come as addresses, as in `decode`.
"""

import ctypes

from qkvbench.native.decode import KINDS, Kind
from qkvbench.native.library import library, target, targets

# Rows up to which the weights are what takes the time.
MOST_ROWS = 8
WEIGHTS: tuple[Kind, ...] = ("fp32", "bf16")


def product(  # noqa: PLR0913 (what a product is told)
    kind: Kind,
    weights: int,
    bias: int | None,
    x: int,
    out: int,
    *,
    rows: int,
    inputs: int,
    outputs: int,
    threads: int = 1,
    on: str | None = None,
) -> None:
    """out[r, o] = sum over i of x[r, i] · weights[o, i], plus bias[o].

    The addresses are of contiguous numbers of type `kind`, one of `WEIGHTS`; sums are in fp32. An
    output has the same bits for any number of threads and of other rows. `on` names a target.
    """
    call = _Product(
        KINDS.index(kind),
        rows,
        inputs,
        outputs,
        threads,
        weights,
        bias,
        x,
        out,
    )
    library().qkv_product(targets()[target(on)], ctypes.byref(call))


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "rows", "inputs", "outputs", "threads")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "x", "out")),
    )
