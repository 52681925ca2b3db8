"""Attention over kept rows that are read once, by a kernel of our own where one can.

On a CPU that is the native library, on a GPU Triton. Where neither can do what is asked, `one_pass`
is None, and the layer goes over the same rows with torch's operations.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench import native
from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.attention.softmax import Scores
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.kernels.linear import watched
from qkvbench.variant import ApplyRope, Plan, Scale

# As it is called where operations are watched.
NAMED = "qkvbench::decode"
# What may stand between a kept row and K for the kernel to make K itself.
READ = ((), (Scale,), (ApplyRope,), (Scale, ApplyRope))

Slots = int | Sequence[int]
Queries = Float[Tensor, "batch roots queries head_dim"]


class DecodeKernel(Protocol):
    """A kernel over the rows of one layer."""

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """What queries see of the slots from `first` up to `end` of each sequence, in fp32.

        They are scaled and turned already, and stand at the last of these slots.
        """
        ...


class CpuDecodeKernel:
    """The native kernel over the rows of one layer; what it is told is kept while pages stay."""

    def __init__(
        self,
        keys: PagedTensor,
        values: PagedTensor | None,
        turner: RotaryEmbedding | None,
        scale: Tensor | None,
        slopes: Sequence[float] | None,
    ) -> None:
        """Over these rows; those of the keys are the values, too, where there are no others.

        Each is multiplied by `scale` and turned when it is read as a key.
        """
        self.keys = keys
        self.values = values
        self.turner = turner
        self.scale = None if scale is None else scale.detach().float().numpy()
        self.slopes = None if slopes is None else np.array(slopes, np.float32)
        self._told: tuple[int, ...] = ()
        self._call: native.Decoding | None = None

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """As of any `OnePass`."""
        call = self._ready(query)
        call.first[:], call.length[:] = first, end
        np.subtract(call.length, 1, out=call.position)
        asked = query.detach().float().contiguous()
        seen = torch.empty_like(asked)
        with watched(f"{NAMED} ({self.keys.kind.name} rows read once, {call.isa})"):
            call(asked.data_ptr(), seen.data_ptr())
        return seen

    def _ready(self, query: Queries) -> native.Decoding:
        """The call for queries of this shape, and for the pages as they are."""
        table = self.keys.table
        told = (table.version, query.shape[0], query.shape[2], torch.get_num_threads())
        if self._call is None or told != self._told:
            self._call = native.Decoding(
                _kind(self.keys),
                _rows(self.keys),
                self.values and _rows(self.values),
                head_dim=self.keys.head_dim,
                roots=self.keys.heads,
                group=query.shape[2],
                page_rows=table.size,
                rope=self.turner and self.turner.turns(table.columns * table.size),
                key_scale=self.scale,
                slopes=self.slopes,
                threads=torch.get_num_threads(),
            )
            self._told = told
        return self._call


def decode_kernel(
    plan: Plan,
    scores: Scores,
    turner: RotaryEmbedding,
    scales: torch.nn.ParameterDict,
    rows: dict[str, PagedTensor],
    computed: torch.dtype,
) -> DecodeKernel | None:
    """The kernel for what `plan` keeps in `rows`; None where none can do what is asked."""
    keys, values = rows[plan.cached_key.name], rows[plan.cached_value.name]
    if not (
        computed != torch.float64
        and scores.spec.correction is None
        and scores.spec.diagonal
        and (keys.heads, keys.head_dim) == (values.heads, values.head_dim)
        and tuple(type(op) for op in plan.key_ops_on_read) in READ
    ):
        return None
    kernel = _kernel(keys)
    if kernel is None:
        return None
    scaled = [op.role for op in plan.key_ops_on_read if isinstance(op, Scale)]
    turned = any(isinstance(op, ApplyRope) for op in plan.key_ops_on_read)
    return kernel(
        keys,
        None if values is keys else values,
        turner if turned and turner.turned else None,
        scales[scaled[0]] if scaled else None,
        scores.slopes,
    )


def _kernel(keys: PagedTensor) -> Callable[..., DecodeKernel] | None:
    """What reads such rows where they lie, in one pass."""
    if keys.table.device.type == "cpu":
        takes = native.CAPABILITIES.can_run(keys.kind.name, keys.head_dim)
        return CpuDecodeKernel if takes and native.missing_requirement() is None else None
    if keys.table.device.type == "cuda" and find_spec("triton"):
        # Where there is no GPU, Triton need not be there.
        from qkvbench.backends.torch.kernels.triton_decode import TritonDecodeKernel

        return TritonDecodeKernel
    return None


def _kind(pages: PagedTensor) -> native.Kind:
    return next(kind for kind in native.KINDS if kind == pages.kind.name)


def _rows(pages: PagedTensor) -> native.PagedRows:
    found = pages.paged()
    scales = found.scale_addresses
    return native.PagedRows(
        found.addresses.numpy().astype(np.uint64),
        found.head_stride,
        found.row_stride,
        None if scales is None else scales.numpy().astype(np.uint64),
        scale_head_stride=found.rows,
    )
