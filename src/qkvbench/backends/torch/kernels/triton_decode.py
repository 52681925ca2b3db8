# Triton is an extra, and its kernels are no Python functions.
# pyright: reportMissingImports=false, reportIndexIssue=false
"""Flash decoding on a GPU in Triton: each cached row is read once, for its score and its value.

Tested in Triton's interpreter; it has not been run on a GPU.

One program handles one sequence, one root head and one chunk of the slots (split-KV). It
accumulates the outputs of all query heads of the root, as in arXiv:2205.14135; the chunks are
combined at the end. A root that is both key and value is loaded once per tile. If RoPE is applied
at read time, the queries are rotated back by the tile's first position (one row of the table) and
the keys forward by their offset in the tile, so that a tile needs few angles, all of them exact.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.profiler import record_function

from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor, PagePointers
from qkvbench.backends.torch.cache.quantize import DTYPES
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME, Queries, Slots

# Rows of a tile; a chunk has one tile or more.
TILE = 64
# Programs that fill a large GPU.
TARGET_PROGRAMS = 256
# The smallest size of a dimension of `tl.dot`.
MIN_DOT_SIZE = 16

KINDS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
}


@triton.jit
def _tile(
    addresses,
    scales,
    slot,
    valid,
    column,
    head,
    page,
    head_stride,
    row_stride,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
):
    """Rows (slot, column) of one root head in fp32 before scaling, and their scales."""
    base = tl.load(addresses + slot // page, mask=valid, other=0)
    row = (slot % page).to(tl.int64)
    wide = tl.cast(head, tl.int64)
    pointers = base.to(tl.pointer_type(KIND)) + wide * head_stride + row * row_stride
    inside = valid[:, None] & (column < DIM)[None, :]
    rows = tl.load(pointers[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)
    scale = tl.full(slot.shape, 1.0, tl.float32)
    if KIND == tl.int8:
        scale_page = tl.load(scales + slot // page, mask=valid, other=0)
        scale_pointers = scale_page.to(tl.pointer_type(tl.float32)) + wide * page + row
        scale = tl.load(scale_pointers, mask=valid, other=0.0)
    return rows, scale


@triton.jit
def _attend(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    first,
    length,
    table,
    factors,
    slopes,
    sums,
    weights,
    pages,
    chunk,
    page,
    key_head,
    key_row,
    value_head,
    value_row,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    SHARED_ROOT: tl.constexpr,
    SCALED: tl.constexpr,
    ALIBI: tl.constexpr,
    KIND: tl.constexpr,
):
    batch, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(first + batch), tl.load(length + batch)
    position = end - 1
    start = begin + split * chunk
    stop = tl.minimum(start + chunk, end)
    member = tl.arange(0, PADDED)
    column = tl.arange(0, WIDE)
    half: tl.constexpr = ROTARY_DIM // 2
    # RoPE pairs coordinate i with i ± half.
    partner = tl.where(column < half, column + half, column - half)
    partner = tl.where(column < ROTARY_DIM, partner, column)
    sign = tl.where(column < half, -1.0, 1.0)
    pair = tl.where(column < half, column, column - half)
    rotated = column < ROTARY_DIM
    query_mask = (member < GROUP)[:, None] & (column < DIM)[None, :]
    at = query + (batch * GROUPS + head) * GROUP * DIM + member[:, None] * DIM
    q = tl.load(at + column[None, :], mask=query_mask, other=0.0)
    q_partner = tl.load(at + partner[None, :], mask=query_mask, other=0.0)
    factor = tl.full(column.shape, 1.0, tl.float32)
    factor_partner = factor
    if SCALED:
        factor = tl.load(factors + column, mask=column < DIM, other=0.0)
        factor_partner = tl.load(factors + partner, mask=column < DIM, other=0.0)
    slope = tl.zeros(member.shape, tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head * GROUP + member, mask=member < GROUP, other=0.0)

    row_max = tl.full(member.shape, float("-inf"), tl.float32)
    row_sum = tl.zeros(member.shape, tl.float32)
    acc = tl.zeros((PADDED, WIDE), tl.float32)
    for tile in range(start, stop, BLOCK):
        offset = tl.arange(0, BLOCK)
        slot = tile + offset
        valid = slot < stop
        rows, scale = _tile(
            keys + batch * pages, key_scales + batch * pages, slot, valid, column, head,
            page, key_head, key_row, DIM, KIND,
        )  # fmt: skip
        k = rows * factor[None, :]
        q_rotated = q
        if ROTARY_DIM > 0:
            # Queries rotate back by the first position of the tile, keys forward by their offset.
            cos = tl.load(table + tile * ROTARY_DIM + pair, mask=rotated, other=1.0)
            sin = tl.load(table + tile * ROTARY_DIM + half + pair, mask=rotated, other=0.0)
            q_rotated = q * cos[None, :] - q_partner * (sin * sign)[None, :]
            k_partner, _ = _tile(
                keys + batch * pages, key_scales + batch * pages, slot, valid, partner, head,
                page, key_head, key_row, DIM, KIND,
            )  # fmt: skip
            angles = table + offset[:, None] * ROTARY_DIM + pair[None, :]
            cos_in = tl.load(angles, mask=rotated[None, :], other=1.0)
            sin_in = tl.load(angles + half, mask=rotated[None, :], other=0.0)
            k = k * cos_in + k_partner * factor_partner[None, :] * sin_in * sign[None, :]
        scores = tl.dot(q_rotated, tl.trans(k), input_precision="ieee") * scale[None, :]
        if ALIBI:
            scores -= slope[:, None] * (position - slot)[None, :]
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        probs = tl.exp(scores - new_max[:, None])
        rescale = tl.exp(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        if SHARED_ROOT:
            probs *= scale[None, :]
        else:
            rows, scale = _tile(
                values + batch * pages, value_scales + batch * pages, slot, valid, column, head,
                page, value_head, value_row, DIM, KIND,
            )  # fmt: skip
            probs *= scale[None, :]
        acc = acc * rescale[:, None] + tl.dot(probs, rows, input_precision="ieee")
        row_max = new_max
    out = ((batch * GROUPS + head) * SPLITS + split) * GROUP
    tl.store(sums + (out + member)[:, None] * DIM + column[None, :], acc, mask=query_mask)
    tl.store(weights + (out + member) * 2, row_max, mask=member < GROUP)
    tl.store(weights + (out + member) * 2 + 1, row_sum, mask=member < GROUP)


class TritonDecodeKernel:
    """The kernel for the cached rows of one layer; page addresses are kept until pages change."""

    def __init__(
        self,
        keys: PagedTensor,
        values: PagedTensor | None,
        rope: RotaryEmbedding | None,
        scale: Float[Tensor, " head_dim"] | None,
        slopes: Sequence[float] | None,
    ) -> None:
        """The keys are the values, too, if `values` is None.

        A row read as a key is multiplied by `scale` and rotated by `rope`.
        """
        self.keys = keys
        self.values = values or keys
        self.shared = values is None
        self.rope = rope
        self.scale = None if scale is None else scale.detach().float()
        self.slopes = slopes and torch.tensor(slopes, device=keys.table.device)
        self._version = -1
        self._paged: tuple[PagePointers, PagePointers] | None = None

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """The context of each query over its slots, as any `DecodeKernel`."""
        batch, roots, group, head_dim = query.shape
        device, like = query.device, query.detach().float().contiguous()
        begins, ends = (_each(slots, batch, device) for slots in (first, end))
        longest = _largest(end) - _smallest(first)
        splits = max(1, min(-(-longest // TILE), TARGET_PROGRAMS // (batch * roots)))
        chunk = -(-longest // (splits * TILE)) * TILE
        splits = -(-longest // chunk)
        sums = like.new_zeros(batch, roots, splits, group, head_dim)
        weights = like.new_empty(batch, roots, splits, group, 2)
        keys, values = self._pointers()
        table = self.rope.table(_largest(end) + TILE, like) if self.rope else like
        with record_function(f"{PROFILER_NAME} ({self.keys.format.name} rows read once, triton)"):
            _attend[(batch, roots, splits)](
                like,
                keys.addresses,
                values.addresses,
                keys.addresses if keys.scale_addresses is None else keys.scale_addresses,
                values.addresses if values.scale_addresses is None else values.scale_addresses,
                begins,
                ends,
                table,
                like if self.scale is None else self.scale,
                like if self.slopes is None else self.slopes,
                sums,
                weights,
                keys.addresses.shape[1],
                chunk,
                keys.rows,
                keys.head_stride,
                keys.row_stride,
                values.head_stride,
                values.row_stride,
                GROUP=group,
                GROUPS=roots,
                SPLITS=splits,
                DIM=head_dim,
                WIDE=max(MIN_DOT_SIZE, triton.next_power_of_2(head_dim)),
                PADDED=max(MIN_DOT_SIZE, triton.next_power_of_2(group)),
                BLOCK=TILE,
                ROTARY_DIM=self.rope.rope.dims if self.rope else 0,
                SHARED_ROOT=self.shared,
                SCALED=self.scale is not None,
                ALIBI=self.slopes is not None,
                KIND=KINDS[DTYPES[self.keys.format.name]],
            )
        row_max, row_sum = weights.unbind(-1)  # (batch, roots, splits, group)
        # A chunk without a row of this sequence has a maximum of -inf, and so a weight of 0.
        weight = (row_max - row_max.amax(2, keepdim=True)).exp()
        return (sums * weight[..., None]).sum(2) / (row_sum * weight).sum(2)[..., None]

    def _pointers(self) -> tuple[PagePointers, PagePointers]:
        """The pages of keys and values, read again only if the page table has changed."""
        version = self.keys.table.version
        if self._paged is None or version != self._version:
            keys = self.keys.pointers().on(self.keys.table.device)
            values = keys if self.shared else self.values.pointers().on(keys.addresses.device)
            self._paged, self._version = (keys, values), version
        return self._paged


def _each(slots: Slots, batch: int, device: torch.device) -> Int[Tensor, " batch"]:
    return torch.tensor([slots] * batch if isinstance(slots, int) else slots, device=device)


def _largest(slots: Slots) -> int:
    return slots if isinstance(slots, int) else max(slots)


def _smallest(slots: Slots) -> int:
    return slots if isinstance(slots, int) else min(slots)
