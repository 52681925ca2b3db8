"""Decode kernels: which one, if any, runs a plan over cached rows; and the one for a CPU.

On a CPU that is the native library, on a GPU Triton. If neither can, `decode_kernel` is None, and
the layer computes the same with torch's operations.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from qkvbench import native
from qkvbench.backends.common.decode_support import missing
from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME, DecodeKernel, Queries, Slots
from qkvbench.backends.torch.kernels.linear import profiler_range
from qkvbench.variant import AlibiBias, ApplyRope, Plan, Scale

# The features of a plan that each kernel can run; a plan with any other is left to torch.
CPU_FEATURES = native.CAPABILITIES.features
GPU_FEATURES = frozenset(
    {
        "mask.causal",
        "mask.window",
        "mask.chunk",
        "bias.AlibiBias",
        "read.Scale",
        "read.ApplyRope",
    }
)


class CpuDecodeKernel:
    """The native kernel over the rows of one layer. Its call is reused until pages change."""

    def __init__(
        self,
        keys: PagedTensor,
        values: PagedTensor | None,
        rope: RotaryEmbedding | None,
        scale: Tensor | None,
        slopes: Sequence[float] | None,
        *,
        sinks: int,
    ) -> None:
        """Over these rows; without `values` those of the keys serve as both.

        A row that is read as a key is multiplied by `scale`, and RoPE is applied to it. The first
        `sinks` slots are always visible.
        """
        self.keys = keys
        self.values = values
        self.rope = rope
        self.scale = None if scale is None else scale.detach().float().numpy()
        self.slopes = None if slopes is None else np.array(slopes, np.float32)
        self.sinks = sinks
        self._state: tuple[int, ...] = ()
        self._call: native.Decoding | None = None

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """As of any `DecodeKernel`."""
        call = self._ready(query)
        call.first[:], call.length[:] = first, end
        np.subtract(call.length, 1, out=call.position)
        grouped = query.detach().float().contiguous()
        context = torch.empty_like(grouped)
        with profiler_range(
            f"{PROFILER_NAME} ({self.keys.format.name} rows read once, {call.isa})"
        ):
            call(grouped.data_ptr(), context.data_ptr())
        return context

    def _ready(self, query: Queries) -> native.Decoding:
        """The call for queries of this shape, and for the pages as they are."""
        table = self.keys.table
        state = (table.version, query.shape[0], query.shape[2], torch.get_num_threads())
        if self._call is None or state != self._state:
            self._call = native.Decoding(
                _kind(self.keys),
                _rows(self.keys),
                self.values and _rows(self.values),
                head_dim=self.keys.head_dim,
                roots=self.keys.heads,
                group=query.shape[2],
                page_rows=table.size,
                rope=self.rope and self.rope.native_table(table.columns * table.size),
                key_scale=self.scale,
                slopes=self.slopes,
                sinks=self.sinks,
                threads=torch.get_num_threads(),
            )
            self._state = state
        return self._call


def decode_kernel(
    plan: Plan,
    rope: RotaryEmbedding | None,
    vector: Callable[[str], Tensor],
    keys: PagedTensor,
    values: PagedTensor,
    dtype: torch.dtype,
) -> DecodeKernel | None:
    """The kernel for these rows, which a layer of `plan` reads; None if none can run it.

    `vector` gives the learned scales of K's heads.
    """
    found = _kernel(keys, plan)
    if found is None or dtype == torch.float64:
        return None
    kernel, supported = found
    if missing(plan, supported):
        return None
    scaled = [op for op in plan.key_ops_on_read if isinstance(op, Scale)]
    on_read = any(isinstance(op, ApplyRope) for op in plan.key_ops_on_read)
    alibi = next((bias for bias in plan.biases if isinstance(bias, AlibiBias)), None)
    return kernel(
        keys,
        None if values is keys else values,
        rope if on_read else None,
        vector(f"{scaled[0].part}.scale") if scaled else None,
        alibi and alibi.slopes(plan.geometry.heads),
    )


def _kernel(
    keys: PagedTensor, plan: Plan
) -> tuple[Callable[..., DecodeKernel], frozenset[str]] | None:
    """The kernel that reads such rows in place, and the features that it supports."""
    if keys.table.device.type == "cpu":
        if native.missing_requirement() is not None:
            return None
        if not native.CAPABILITIES.can_run(keys.format.name, keys.head_dim):
            return None
        return partial(CpuDecodeKernel, sinks=plan.mask.sinks), CPU_FEATURES
    if keys.table.device.type == "cuda" and find_spec("triton"):
        # Without a GPU Triton need not be installed.
        from qkvbench.backends.torch.cache.quantize import DTYPES
        from qkvbench.backends.torch.kernels.triton_decode import KINDS, TritonDecodeKernel

        if DTYPES[keys.format.name] not in KINDS:
            return None
        return TritonDecodeKernel, GPU_FEATURES
    return None


def _kind(pages: PagedTensor) -> native.Kind:
    return next(kind for kind in native.KINDS if kind == pages.format.name)


def _rows(tensor: PagedTensor) -> native.PagedRows:
    pointers = tensor.pointers()
    scales = pointers.scale_addresses
    return native.PagedRows(
        pointers.addresses.numpy().astype(np.uint64),
        pointers.head_stride,
        pointers.row_stride,
        None if scales is None else scales.numpy().astype(np.uint64),
        scale_head_stride=pointers.rows * pointers.groups,
        scale_row_stride=pointers.groups,
    )
