"""Attention of one query per sequence over cached rows that are read once, by the native library.

Tensors are passed as addresses, so any framework's will do; the caller keeps them alive.
"""

import ctypes
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt64

from qkvbench.native.library import library, select_isa, supported_isas

# int4: two numbers a byte in two's complement, the even one in the low nibble.
Kind = Literal["fp32", "bf16", "fp16", "int8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Kinds whose rows have scales: one a row, or one for each GROUP numbers.
SCALED: frozenset[Kind] = frozenset({"int8", "int4"})

# As in cpp/decode.h; a test compares them.
LANES, TILE, CHUNK, MAX_HEAD_DIM, GROUP = 16, 64, 1024, 256, 32


@dataclass(frozen=True)
class Capabilities:
    """Everything that a kernel can run; a caller compares it with the needs of a plan."""

    head_dims: Mapping[str, range]
    features: frozenset[str]

    def can_run(self, kind: str, head_dim: int, features: Set[str] = frozenset()) -> bool:
        """Whether the kernel reads rows of this kind and size with all of these features."""
        return (
            kind in self.head_dims
            and head_dim in self.head_dims[kind]
            and features <= self.features
        )


CAPABILITIES = Capabilities(
    # int4 rows are whole groups; all others are whole vectors of 8 numbers.
    head_dims={
        kind: range(step, MAX_HEAD_DIM + 1, step)
        for kind in KINDS
        for step in (GROUP if kind == "int4" else 8,)
    },
    features=frozenset(
        {
            "mask.causal",
            "mask.window",
            "mask.chunk",
            "mask.sinks",
            "bias.AlibiBias",
            "read.Scale",
            "read.ApplyRope",
        }
    ),
)


@dataclass(frozen=True)
class PagedRows:
    """Addresses of cached rows.

    Row `slot` of sequence b and root head g begins, in stored elements (bytes for int4), at
    pages[b, slot // page_rows] + g · head_stride + (slot % page_rows) · row_stride.

    `pages` is read at each call, so addresses may change in between. A page without a visible slot
    is never read: its address may be 0. A contiguous cache is one page for each sequence. `scales`
    are addresses of nonnegative fp32 scales by the same rule: one for each row of int8, and
    head_dim / GROUP consecutive ones for each row of int4.
    """

    pages: UInt64[np.ndarray, "batch pages"]
    head_stride: int
    row_stride: int
    scales: UInt64[np.ndarray, "batch pages"] | None = None
    scale_head_stride: int = 0
    scale_row_stride: int = 1


class RopeTable:
    """Cosines and sines of RoPE, by which pairs (i, i + half) are rotated at slots < capacity."""

    def __init__(self, frequencies: Float[np.ndarray, " half"], capacity: int) -> None:
        """Tables in fp32 of angles in fp64; `frequencies` are radians per slot."""
        self.rotary_dim = 2 * len(frequencies)
        self.capacity = capacity
        # The kernel rotates by slot // CHUNK · CHUNK, then by the rest in steps of at most TILE.
        self.in_tile = self._table(frequencies, np.arange(TILE + 1))
        self.per_chunk = self._table(frequencies, np.arange(0, max(capacity, 1), CHUNK))

    @staticmethod
    def _table(
        frequencies: Float[np.ndarray, " half"], slots: Int64[np.ndarray, " slots"]
    ) -> Float32[np.ndarray, "slots 2 padded_half"]:
        """Cosines, then sines, each padded with zeros."""
        angle = np.outer(slots.astype(np.float64), frequencies.astype(np.float64))  # (slots, half)
        table = np.zeros((len(slots), 2, -(-len(frequencies) // LANES) * LANES), np.float32)
        table[:, 0, : len(frequencies)] = np.cos(angle)
        table[:, 1, : len(frequencies)] = np.sin(angle)
        return table


class Decoding:
    """Attention of one query per sequence and head, set up once for many calls.

    Query head h of a sequence reads root head h // group. Slots below `length` of each sequence are
    visible if they are below `sinks` or not below `first`; the caller writes `first` and `length`,
    and, for ALiBi, each query's own slot to `position`.
    """

    def __init__(  # noqa: PLR0913 (all parts of an attention layer)
        self,
        kind: Kind,
        keys: PagedRows,
        values: PagedRows | None = None,
        *,
        head_dim: int,
        roots: int,
        group: int = 1,
        page_rows: int,
        rope: RopeTable | None = None,
        key_scale: Float32[np.ndarray, " head_dim"] | None = None,
        slopes: Float32[np.ndarray, " heads"] | None = None,
        sinks: int = 0,
        threads: int = 1,
        isa: str | None = None,
    ) -> None:
        """Set up; without `values`, the keys' rows are also the values.

        Each row that is read as a key is multiplied by `key_scale`, then rotated by `rope`.
        `slopes` times the distance is subtracted from the scores (ALiBi). Raises ValueError if the
        kernel cannot run this, UnavailableError if there is no kernel.
        """
        self.batch, self.pages = keys.pages.shape
        heads = roots * group
        _check(kind, keys, values, head_dim, rope)
        capacity = self.pages * page_rows
        if rope is not None and rope.capacity < capacity:
            raise ValueError(f"A RoPE table of {rope.capacity} slots does not reach {capacity}.")
        if min(self.batch, roots, group, page_rows, threads) < 1:
            raise ValueError("batch, roots, group, page_rows and threads must be at least 1.")
        if sinks < 0:
            raise ValueError(f"sinks is {sinks}; it must be at least 0.")
        for name, array, size in (("key_scale", key_scale, head_dim), ("slopes", slopes, heads)):
            if array is not None and array.shape != (size,):
                raise ValueError(f"{name} has shape {array.shape}; it must be ({size},).")
        self.isa = select_isa(isa)
        self.query_shape = (self.batch, heads, head_dim)
        self.first: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self.length: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self.position: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self._arrays: list[np.ndarray] = []
        self._call = _Call(
            kind=KINDS.index(kind),
            head_dim=head_dim,
            batch=self.batch,
            roots=roots,
            group=group,
            threads=threads,
            page_rows=page_rows,
            pages_each=self.pages,
            sinks=sinks,
            keys=self._rows(keys),
            values=self._rows(values) if values else _Rows(),
            first=self._address(self.first),
            length=self._address(self.length),
            position=self._address(self.position),
            key_scale=self._address(key_scale, np.float32),
            slopes=self._address(slopes, np.float32),
            rotary_dim=rope.rotary_dim if rope else 0,
            rope_in_tile=self._address(rope.in_tile) if rope else None,
            rope_per_chunk=self._address(rope.per_chunk) if rope else None,
        )
        self._isa_index = supported_isas()[self.isa]
        self._call_address = ctypes.addressof(self._call)
        self._run = library().qkv_decode

    def __call__(self, query: int, out: int, log_sum: int | None = None) -> None:
        """Attend. `query` and `out` are addresses of contiguous fp32 of shape `query_shape`.

        The query is scaled, and rotated to its own position. `log_sum` (batch, heads) receives the
        logarithm of the sum of the exponentials of the scores, by which parts can be combined. If
        no slot is visible, `out` is 0 and `log_sum` -infinity. Raises IndexError if visible slots
        exceed the pages.
        """
        call = self._call
        call.query, call.out, call.log_sum = query, out, log_sum
        if (wrong := self._run(self._isa_index, self._call_address)) >= 0:
            raise IndexError(
                f"Sequence {wrong} attends to slots {self.first[wrong]} to {self.length[wrong]}; "
                f"its pages hold 0 to {self.pages * call.page_rows}."
            )

    def _rows(self, rows: PagedRows) -> "_Rows":
        return _Rows(
            pages=self._address(rows.pages),
            head_stride=rows.head_stride,
            row_stride=rows.row_stride,
            scale_pages=self._address(rows.scales),
            scale_head_stride=rows.scale_head_stride,
            scale_row_stride=rows.scale_row_stride,
        )

    def _address(self, array: np.ndarray | None, dtype: type | None = None) -> int | None:
        """The address of an array that this object keeps alive; a copy only if dtypes differ."""
        if array is None:
            return None
        array = np.ascontiguousarray(array, dtype)
        self._arrays.append(array)
        return array.ctypes.data


def _check(
    kind: Kind, keys: PagedRows, values: PagedRows | None, head_dim: int, rope: RopeTable | None
) -> None:
    if not CAPABILITIES.can_run(kind, head_dim):
        step = CAPABILITIES.head_dims[kind].step
        raise ValueError(
            f"head_dim is {head_dim}; for {kind} it must be a multiple of {step} "
            f"up to {MAX_HEAD_DIM}."
        )
    if rope is not None and rope.rotary_dim > head_dim:
        raise ValueError(f"The RoPE table rotates {rope.rotary_dim} coordinates of {head_dim}.")
    for rows in (keys, values):
        if rows is None:
            continue
        if rows.pages.shape != keys.pages.shape:
            raise ValueError(f"Pages of values are {rows.pages.shape}, of keys {keys.pages.shape}.")
        for pages in (rows.pages, rows.scales):
            if pages is not None and not (pages.dtype == np.uint64 and pages.flags.c_contiguous):
                raise ValueError("Pages are addresses: a contiguous array of uint64.")
        if (rows.scales is not None) != (kind in SCALED):
            raise ValueError("Rows of int8 and int4 need scales; other rows have none.")
        if rows.scales is not None and rows.scales.shape != rows.pages.shape:
            raise ValueError(f"Scales have pages {rows.scales.shape}, rows {rows.pages.shape}.")


class _Rows(ctypes.Structure):
    """QkvRows of cpp/decode.h."""

    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("scale_pages", ctypes.c_void_p),
        ("scale_head_stride", ctypes.c_int64),
        ("scale_row_stride", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    """QkvDecode of cpp/decode.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "head_dim", "batch", "roots", "group")),
        *((name, ctypes.c_int32) for name in ("threads", "page_rows", "pages_each", "sinks")),
        ("keys", _Rows),
        ("values", _Rows),
        *((name, ctypes.c_void_p) for name in ("first", "length", "query", "out", "log_sum")),
        *((name, ctypes.c_void_p) for name in ("key_scale", "slopes", "position")),
        ("rotary_dim", ctypes.c_int32),
        ("rope_in_tile", ctypes.c_void_p),
        ("rope_per_chunk", ctypes.c_void_p),
    )
