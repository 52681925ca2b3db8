"""Attention of one new token over a cache's rows where they lie, by the native kernel.

The only place that decides what runs through the kernel. Everything else is left to torch.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qkvbench import native
from qkvbench.backends.common.decode_support import missing
from qkvbench.backends.torch.attention.ops import HeadVectors
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME
from qkvbench.backends.torch.kernels.linear import profiler_range
from qkvbench.hub.growing_layer import GrowingLayer
from qkvbench.hub.growing_tensor import Cached, FewBitsRows, Heads, Rows
from qkvbench.native.library import VARIABLE
from qkvbench.variant import Plan, Scale

KINDS: Mapping[torch.dtype, native.Kind] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
# Tables of RoPE reach so many positions at least, and double when a text is longer.
MIN_POSITIONS = 1 << 12

Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]
# Slots from the first that a sequence sees to the one behind the last.
Interval = tuple[int, int]


@dataclass(frozen=True)
class _Stored:
    """Cached rows as the kernel reads them: their numbers, and their scales if they have any."""

    kind: str
    width: int
    tensors: tuple[Rows, ...]

    @classmethod
    def of(cls, rows: Cached) -> "_Stored":
        """The rows of any cache."""
        if isinstance(rows, FewBitsRows):
            return cls(rows.kind, rows.width, (rows.numbers, rows.scales))
        return cls(KINDS.get(rows.dtype, ""), rows.shape[-1], (rows,))

    @property
    def strides(self) -> list[tuple[int, int]]:
        """Those of heads and rows, of each tensor."""
        return [(tensor.stride(1), tensor.stride(2)) for tensor in self.tensors]

    def paged(self, pages: list[np.ndarray]) -> native.PagedRows:
        """The same for the kernel: each sequence is one page."""
        numbers, *scales = zip(pages, self.strides, strict=True)
        if not scales:
            return native.PagedRows(numbers[0], *numbers[1])
        [(scale_pages, strides)] = scales
        return native.PagedRows(numbers[0], *numbers[1], scale_pages, *strides)


class _Prepared(threading.local):
    """A call that one thread has set up, since several may decode with one model at once."""

    call: native.Decoding | None = None
    state: tuple[object, ...] = ()
    # Those of each tensor of keys, then of values.
    pages: tuple[list[UInt64[np.ndarray, "batch one"]], ...] = ()
    scale: Float[np.ndarray, " width"] | None = None


class KernelAttention:
    """The native kernel over the cached rows of one layer. A copy of it begins anew."""

    def __init__(self, plan: Plan) -> None:
        """For a layer of this plan, which the kernel may not support."""
        self._plan = plan
        self._supported = not missing(plan, native.CAPABILITIES.features)
        scales = [op.part for op in plan.key_ops_on_read if isinstance(op, Scale)]
        self._scale_name = f"{scales[0]}.scale" if scales else ""
        self._prepared = _Prepared()

    def __reduce__(self) -> tuple[type["KernelAttention"], tuple[Plan]]:
        """Copied and pickled as its plan: the call has addresses of this process."""
        return type(self), (self._plan,)

    def is_wanted(self, module: Any, implementation: object, options: Mapping[str, Any]) -> bool:
        """Whether a module's attention function may be replaced by the kernel.

        A caller of sdpa gets no attention weights; any other function is the user's choice.
        """
        return (
            implementation is sdpa_attention_forward
            and not module.training
            and options.get("position_bias") is None
            and not options.get("output_attentions")
        )

    def grow(self, cache: Any, layer: int) -> None:
        """Let a layer of the library's cache grow in place once the kernel has run.

        The library copies all of its rows for each token.
        """
        if (
            self._prepared.call is None
            or torch.compiler.is_compiling()
            or layer >= len(cache.layers)
        ):
            return
        if type(cache.layers[layer]) is DynamicLayer:
            cache.layers[layer] = GrowingLayer.of(cache.layers[layer])

    def __call__(
        self,
        query: Heads,
        keys: Cached,
        values: Cached | None,
        mask: Mask | None,
        *,
        scaling: float,
        positions: Int[Tensor, "_batch _heads time one"] | Heads | None = None,
        frequencies: Float[Tensor, " pairs"] | None = None,
        vectors: HeadVectors | None = None,
    ) -> Float[Tensor, "batch one heads width"] | None:
        """softmax(q·k·scaling + mask)·v over rows of a cache; None if the kernel cannot run it.

        Without `values` the keys' rows are also the values. Rows that are read as keys are
        multiplied by the scale of the plan, which `vectors` gives, and rotated to their `positions`
        by `frequencies` if there are any.
        """
        stored = [_Stored.of(rows) for rows in (keys, values) if rows is not None]
        if not self._can_run(query, stored):
            return None
        slots = stored[0].tensors[0]
        intervals = _intervals(mask, slots)
        offsets = [0] * len(slots)
        if intervals is not None and frequencies is not None:
            assert positions is not None, "rows that are rotated on read have positions"
            offsets = _offsets(positions.numpy()[:, 0, :, 0], intervals)
        if intervals is None or offsets is None:
            return None
        last = max(end + offset for (_, end), offset in zip(intervals, offsets, strict=True))
        capacity = max(MIN_POSITIONS, 1 << last.bit_length())
        rope = None
        if frequencies is not None:
            rope = _rope_table(frequencies.float().numpy().tobytes(), capacity)
        call = self._ready(query, stored, capacity, rope)
        if call is None:
            return None
        made = self._prepared
        if made.scale is not None and vectors is not None:
            # It may have been trained or loaded since.
            made.scale[:] = vectors(self._scale_name).detach().float().numpy()
        # A slot of the kernel is a position, so its rows begin where position 0 would be.
        for number, ((first, end), offset) in enumerate(zip(intervals, offsets, strict=True)):
            call.first[number], call.length[number] = first + offset, end + offset
            for each, rows in zip(made.pages, stored, strict=True):
                for pages, tensor in zip(each, rows.tensors, strict=True):
                    batch, _, row, _ = tensor.stride()
                    begin = (number * batch - offset * row) * tensor.element_size()
                    pages[number, 0] = tensor.data_ptr() + begin
        scaled = (query.float() * scaling).contiguous()
        context = torch.empty_like(scaled)
        with profiler_range(f"{PROFILER_NAME} ({stored[0].kind} rows read once, {call.isa})"):
            call(scaled.data_ptr(), context.data_ptr())
        return context.transpose(1, 2).to(query.dtype)

    def _can_run(self, query: Heads, stored: list[_Stored]) -> bool:
        """Whether the kernel reads such rows, for one token, and numbers are all that is wanted."""
        tensors = [tensor for rows in stored for tensor in rows.tensors]
        return (
            self._supported
            and query.shape[2] == 1
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
            and all(_is_plain(tensor) for tensor in (query, *tensors))
            and all(tensor.stride(-1) == 1 for tensor in tensors)
            and all(rows.kind == stored[0].kind for rows in stored)
            and native.CAPABILITIES.can_run(stored[0].kind, stored[0].width)
        )

    def _ready(
        self, query: Heads, stored: list[_Stored], capacity: int, rope: native.RopeTable | None
    ) -> native.Decoding | None:
        """The call for such rows and queries, whatever their addresses; None without a library."""
        made, (batch, roots) = self._prepared, stored[0].tensors[0].shape[:2]
        kind, width, strides = stored[0].kind, stored[0].width, [rows.strides for rows in stored]
        threads, choice = torch.get_num_threads(), os.environ.get(VARIABLE)
        state = (kind, query.shape, roots, width, strides, capacity, rope, threads, choice)
        if state != made.state:
            made.state, made.call = state, None
            if native.missing_requirement() is not None:
                return None
            made.pages = tuple(
                [np.zeros((batch, 1), np.uint64) for _ in rows.tensors] for rows in stored
            )
            made.scale = np.ones(width, np.float32) if self._scale_name else None
            paged = [rows.paged(pages) for rows, pages in zip(stored, made.pages, strict=True)]
            made.call = native.Decoding(
                cast(native.Kind, kind),
                *paged,
                head_dim=width,
                roots=roots,
                group=query.shape[1] // roots,
                page_rows=capacity,
                rope=rope,
                key_scale=made.scale,
                threads=threads,
            )
        return made.call


@lru_cache(maxsize=8)
def _rope_table(frequencies: bytes, capacity: int) -> native.RopeTable:
    """The table of these frequencies in fp32, which the layers of a model share."""
    return native.RopeTable(np.frombuffer(frequencies, np.float32), capacity)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has numbers in this machine's memory, and no gradient is wanted."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.requires_grad


def _intervals(mask: Mask | None, keys: Rows) -> list[Interval] | None:
    """The slots that each sequence sees, if they follow each other for all heads; else None."""
    batch, _, slots, _ = keys.shape
    if mask is None:
        return [(0, slots)] * batch
    if mask.ndim != 4 or mask.shape[1:] != (1, 1, slots) or not _is_plain(mask):
        return None
    if mask.dtype != torch.bool:
        hidden = mask <= torch.finfo(mask.dtype).min
        if not bool(((mask == 0) | hidden).all()):
            return None
        mask = ~hidden
    found: list[Interval] = []
    for visible in mask.expand(batch, -1, -1, -1)[:, 0, 0].numpy():
        first, end = int(visible.argmax()), slots - int(visible[::-1].argmax())
        if np.count_nonzero(visible) != end - first:
            return None
        found.append((first, end))
    return found


def _offsets(positions: np.ndarray, intervals: list[Interval]) -> list[int] | None:
    """The position of each sequence's slot 0, if those of its visible slots count up; else None."""
    found: list[int] = []
    for row, (first, end) in zip(positions, intervals, strict=True):
        begin = int(row[first])
        counted = _slots(1 << (begin + end - first).bit_length(), row.dtype)
        # Bytes are compared in one pass, without an array of truth values.
        if begin < 0 or row[first:end].tobytes() != counted[begin : begin + end - first].tobytes():
            return None
        found.append(begin - first)
    return found


@lru_cache(maxsize=8)
def _slots(slots: int, dtype: np.dtype) -> np.ndarray:
    """So many numbers from 0, in the dtype of positions."""
    return np.arange(slots, dtype=dtype)
