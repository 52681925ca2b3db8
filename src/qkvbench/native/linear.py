"""A linear layer for a few rows, by the native library: weights are read once.

Tensors are passed as addresses, as in `decode`.
"""

import ctypes

from qkvbench.native.decode import KINDS, Kind
from qkvbench.native.library import library, select_isa, supported_isas

# With more rows, reading weights is no longer the bottleneck.
MAX_ROWS = 8
WEIGHT_KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8", "int4")


def linear(  # noqa: PLR0913 (addresses and sizes)
    kind: Kind,
    weights: int,
    bias: int | None,
    x: int,
    out: int,
    *,
    rows: int,
    inputs: int,
    outputs: int,
    scales: int | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> None:
    """out[r, o] = sum over i of x[r, i] · weights[o, i], times scales[o], plus bias[o].

    The addresses are of contiguous numbers of type `kind`, one of `WEIGHT_KINDS`. Weights of int8
    and int4 alone have scales, and the rest is fp32 then; int4 is packed as cached rows are, in
    whole groups, and has a scale for each group: (outputs, inputs / GROUP). Sums are in fp32.
    The bits of an output depend neither on the number of threads nor on the other rows.
    """
    call = _Call(
        KINDS.index(kind),
        rows,
        inputs,
        outputs,
        threads,
        weights,
        bias,
        x,
        out,
        scales,
    )
    library().qkv_linear(supported_isas()[select_isa(isa)], ctypes.byref(call))


class _Call(ctypes.Structure):
    """QkvLinear of cpp/decode.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "rows", "inputs", "outputs", "threads")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "x", "out", "scales")),
    )
