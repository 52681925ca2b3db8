"""One query per sequence over cached rows that are read once, by the native library.

Tensors come as addresses, so that any framework's will do: the caller keeps them alive.
"""

import ctypes
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt64

from qkvbench.native.library import library, target, targets

Kind = Literal["fp32", "bf16", "fp16", "int8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# As in cpp/decode.h, which a test compares.
LANES, TILE, STRETCH, MOST_DIM, GROUP = 16, 64, 1024, 256, 32


@dataclass(frozen=True)
class Capabilities:
    """A kernel's list of everything that it can run; a caller compares it with a plan's needs."""

    head_dims: Mapping[Kind, range]
    features: frozenset[str]

    def can_run(self, kind: str, head_dim: int, features: Set[str] = frozenset()) -> bool:
        """Whether rows of this kind and size can be read with all of these features."""
        return (
            kind in self.head_dims
            and head_dim in self.head_dims[kind]
            and features <= self.features
        )


CAPABILITIES = Capabilities(
    # int4 rows are whole groups of numbers that share a scale; all others, whole vectors of 8.
    head_dims={
        kind: range(step, MOST_DIM + 1, step)
        for kind in KINDS
        for step in (GROUP if kind == "int4" else 8,)
    },
    features=frozenset(
        {
            "mask.causal",
            "mask.window",
            "mask.sinks",
            "bias.alibi",
            "read.scale",
            "read.rope",
        }
    ),
)


@dataclass(frozen=True)
class Rows:
    """Where cached rows lie.

    Row `slot` of sequence b and root head g begins, in elements, at
    pages[b, slot // page_rows] + g · head_stride + (slot % page_rows) · row_stride.

    `pages` holds addresses and is read at each call, so it may change in between; one page for each
    sequence is a plain cache. With int8, `scales` holds addresses of fp32 scales by the same rule,
    none of them negative.
    """

    pages: UInt64[np.ndarray, "batch pages"]
    head_stride: int
    row_stride: int
    scales: UInt64[np.ndarray, "batch pages"] | None = None
    scale_head_stride: int = 0
    scale_row_stride: int = 1


class Turns:
    """How far a rotary scheme turns each pair (i, i + half) at slots 0 ... capacity - 1."""

    def __init__(self, frequencies: Float[np.ndarray, " half"], capacity: int) -> None:
        """Tables in fp32 of angles in fp64; `frequencies` are radians per slot."""
        self.turned = 2 * len(frequencies)
        self.capacity = capacity
        self.near = self._table(frequencies, np.arange(TILE + 1))
        self.far = self._table(frequencies, np.arange(0, max(capacity, 1), STRETCH))

    @staticmethod
    def _table(frequencies: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Cosines, then sines, each padded with zeros: (slots, 2, padded half)."""
        angle = np.outer(slots.astype(np.float64), frequencies.astype(np.float64))
        table = np.zeros((len(slots), 2, -(-len(frequencies) // LANES) * LANES), np.float32)
        table[:, 0, : len(frequencies)] = np.cos(angle)
        table[:, 1, : len(frequencies)] = np.sin(angle)
        return table


class Decoding:
    """Attention of one query per sequence and head, ready to be called again and again.

    Query head h of a sequence reads root head h // group. Write to `first` and `length` which slots
    [first, length) of each sequence are seen, and to `position` where its query is (for slopes).
    """

    def __init__(  # noqa: PLR0913 (what a call of attention is told)
        self,
        kind: Kind,
        keys: Rows,
        values: Rows | None = None,
        *,
        head_dim: int,
        roots: int,
        group: int = 1,
        page_rows: int,
        turns: Turns | None = None,
        key_scale: Float32[np.ndarray, " head_dim"] | None = None,
        slopes: Float32[np.ndarray, " heads"] | None = None,
        sinks: int = 0,
        threads: int = 1,
        on: str | None = None,
    ) -> None:
        """The work on these rows; without `values`, the keys' rows are also the values.

        `key_scale`, then `turns`, are applied to each row that is read as a key; `slopes` times the
        distance is taken from the scores (ALiBi). `on` names a target. ValueError where the kernel
        cannot do what is asked, UnavailableError where there is none.
        """
        self.batch, self.pages = keys.pages.shape
        heads = roots * group
        _check(kind, keys, values, head_dim, turns)
        capacity = self.pages * page_rows
        if turns is not None and turns.capacity < capacity:
            raise ValueError(f"Turns for {turns.capacity} slots do not reach {capacity}.")
        if min(self.batch, roots, group, page_rows, threads) < 1:
            raise ValueError("Sequences, roots, heads, rows of a page and threads count from 1.")
        if sinks < 0:
            raise ValueError(f"sinks is {sinks}; it must be at least 0.")
        for name, given, size in (("key_scale", key_scale, head_dim), ("slopes", slopes, heads)):
            if given is not None and given.shape != (size,):
                raise ValueError(f"{name} has shape {given.shape}; it must be ({size},).")
        self.target = target(on)
        self.query_shape = (self.batch, heads, head_dim)
        self.first: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self.length: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self.position: Int64[np.ndarray, " batch"] = np.zeros(self.batch, np.int64)
        self._kept: list[np.ndarray] = []
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
            turned=turns.turned if turns else 0,
            near=self._address(turns.near) if turns else None,
            far=self._address(turns.far) if turns else None,
        )
        self._number = targets()[self.target]
        self._at = ctypes.addressof(self._call)
        self._run = library().qkv_decode

    def __call__(self, query: int, out: int, log_sum: int | None = None) -> None:
        """Attend. The addresses are of contiguous fp32 of shape `query_shape`.

        The query is scaled and turned to its own position. `log_sum`, of (batch, heads), is given
        the logarithm of the sum of the exponentials of the scores, by which parts may be joined.
        What sees nothing is 0, and its log_sum -infinity. IndexError where slots are seen that
        there are no pages for.
        """
        call = self._call
        call.query, call.out, call.log_sum = query, out, log_sum
        if (wrong := self._run(self._number, self._at)) >= 0:
            raise IndexError(
                f"Sequence {wrong} sees slots {self.first[wrong]} to {self.length[wrong]}; "
                f"its pages hold 0 to {self.pages * call.page_rows}."
            )

    def _rows(self, rows: Rows) -> "_Rows":
        return _Rows(
            pages=self._address(rows.pages),
            head_stride=rows.head_stride,
            row_stride=rows.row_stride,
            scale_pages=self._address(rows.scales),
            scale_head_stride=rows.scale_head_stride,
            scale_row_stride=rows.scale_row_stride,
        )

    def _address(self, array: np.ndarray | None, kind: type | None = None) -> int | None:
        """Of an array that this object keeps alive; of a copy only where the type differs."""
        if array is None:
            return None
        kept = np.ascontiguousarray(array, kind)
        self._kept.append(kept)
        return kept.ctypes.data


def _check(kind: Kind, keys: Rows, values: Rows | None, head_dim: int, turns: Turns | None) -> None:
    if not CAPABILITIES.can_run(kind, head_dim):
        step = CAPABILITIES.head_dims[kind].step
        raise ValueError(
            f"head_dim is {head_dim}; for {kind} it must be a multiple of {step} up to {MOST_DIM}."
        )
    if turns is not None and turns.turned > head_dim:
        raise ValueError(f"{turns.turned} coordinates are to be turned, of {head_dim}.")
    for rows in (keys, values):
        if rows is None:
            continue
        if rows.pages.shape != keys.pages.shape:
            raise ValueError(f"Pages of values are {rows.pages.shape}, of keys {keys.pages.shape}.")
        for pages in (rows.pages, rows.scales):
            if pages is not None and not (pages.dtype == np.uint64 and pages.flags.c_contiguous):
                raise ValueError("Pages are addresses: a contiguous array of uint64.")
        if (rows.scales is not None) != (kind in ("int8", "int4")):
            raise ValueError("Rows of int8 and int4 have scales, and no others.")
        if rows.scales is not None and rows.scales.shape != rows.pages.shape:
            raise ValueError(f"Scales have pages {rows.scales.shape}, rows {rows.pages.shape}.")


class _Rows(ctypes.Structure):
    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("scale_pages", ctypes.c_void_p),
        ("scale_head_stride", ctypes.c_int64),
        ("scale_row_stride", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "head_dim", "batch", "roots", "group")),
        *((name, ctypes.c_int32) for name in ("threads", "page_rows", "pages_each", "sinks")),
        ("keys", _Rows),
        ("values", _Rows),
        *((name, ctypes.c_void_p) for name in ("first", "length", "query", "out", "log_sum")),
        *((name, ctypes.c_void_p) for name in ("key_scale", "slopes", "position")),
        ("turned", ctypes.c_int32),
        ("near", ctypes.c_void_p),
        ("far", ctypes.c_void_p),
    )
