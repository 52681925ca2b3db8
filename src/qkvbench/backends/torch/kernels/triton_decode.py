# Triton is an extra, and its kernels are no Python functions.
# pyright: reportMissingImports=false, reportIndexIssue=false
"""Decoding on a GPU with one pass over the cache: each row is read once, for score and for sum.

Written in Triton and tested in its interpreter. It has not been run on a GPU.

Each program has one sequence, one root head and one stretch of the slots; it keeps the sums of all
query heads of the root, as in arXiv:2205.14135, and the stretches are joined at the end. A root
that is key and value is loaded once a tile. Where it is turned by positions on read, the queries
are turned back to the tile's first position, of which the table has one row, and the rows on by
their place in the tile, so that a tile needs few angles and all of them are exact.
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

# Rows of a tile; a stretch is at least as long.
TILE = 64
# Programs that are enough to fill a large GPU.
ENOUGH = 256
# The fewest rows of an operand of a product.
FEWEST = 16

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
    seen,
    column,
    head,
    page,
    head_stride,
    row_stride,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
):
    """Rows (slot, column) of one root head in fp32, scales not applied, and the scales."""
    base = tl.load(addresses + slot // page, mask=seen, other=0)
    within = (slot % page).to(tl.int64)
    pointers = base.to(tl.pointer_type(KIND)) + head * head_stride + within * row_stride
    wanted = seen[:, None] & (column < DIM)[None, :]
    rows = tl.load(pointers[:, None] + column[None, :], mask=wanted, other=0).to(tl.float32)
    scale = tl.full(slot.shape, 1.0, tl.float32)
    if KIND == tl.int8:
        of_scales = tl.load(scales + slot // page, mask=seen, other=0)
        places = of_scales.to(tl.pointer_type(tl.float32)) + head * page + within
        scale = tl.load(places, mask=seen, other=0.0)
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
    stretch,
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
    TURN: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    SLOPED: tl.constexpr,
    KIND: tl.constexpr,
):
    batch, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(first + batch), tl.load(length + batch)
    now = end - 1
    start = begin + split * stretch
    stop = tl.minimum(start + stretch, end)
    member = tl.arange(0, PADDED)
    column = tl.arange(0, WIDE)
    half: tl.constexpr = TURN // 2
    # Each coordinate turns with the one half of the turned ones away.
    partner = tl.where(column < half, column + half, column - half)
    partner = tl.where(column < TURN, partner, column)
    sign = tl.where(column < half, -1.0, 1.0)
    pair = tl.where(column < half, column, column - half)
    turns = column < TURN
    asked = (member < GROUP)[:, None] & (column < DIM)[None, :]
    at = query + (batch * GROUPS + head) * GROUP * DIM + member[:, None] * DIM
    q = tl.load(at + column[None, :], mask=asked, other=0.0)
    q_partner = tl.load(at + partner[None, :], mask=asked, other=0.0)
    factor = tl.full(column.shape, 1.0, tl.float32)
    factor_partner = factor
    if SCALED:
        factor = tl.load(factors + column, mask=column < DIM, other=0.0)
        factor_partner = tl.load(factors + partner, mask=column < DIM, other=0.0)
    slope = tl.zeros(member.shape, tl.float32)
    if SLOPED:
        slope = tl.load(slopes + head * GROUP + member, mask=member < GROUP, other=0.0)

    highest = tl.full(member.shape, float("-inf"), tl.float32)
    total = tl.zeros(member.shape, tl.float32)
    sum_ = tl.zeros((PADDED, WIDE), tl.float32)
    for here in range(start, stop, BLOCK):
        place = tl.arange(0, BLOCK)
        slot = here + place
        seen = slot < stop
        rows, scale = _tile(
            keys + batch * pages, key_scales + batch * pages, slot, seen, column, head,
            page, key_head, key_row, DIM, KIND,
        )  # fmt: skip
        k = rows * factor[None, :]
        asking = q
        if TURN > 0:
            # The queries turned back by the tile's first position, the rows on by their place.
            cos = tl.load(table + here * TURN + pair, mask=turns, other=1.0)
            sin = tl.load(table + here * TURN + half + pair, mask=turns, other=0.0)
            asking = q * cos[None, :] - q_partner * (sin * sign)[None, :]
            others, _ = _tile(
                keys + batch * pages, key_scales + batch * pages, slot, seen, partner, head,
                page, key_head, key_row, DIM, KIND,
            )  # fmt: skip
            by = table + place[:, None] * TURN + pair[None, :]
            cos_in = tl.load(by, mask=turns[None, :], other=1.0)
            sin_in = tl.load(by + half, mask=turns[None, :], other=0.0)
            k = k * cos_in + others * factor_partner[None, :] * sin_in * sign[None, :]
        scores = tl.dot(asking, tl.trans(k), input_precision="ieee") * scale[None, :]
        if SLOPED:
            scores -= slope[:, None] * (now - slot)[None, :]
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        share = tl.exp(scores - higher[:, None])
        before = tl.exp(highest - higher)
        total = total * before + tl.sum(share, 1)
        if SHARED:
            share *= scale[None, :]
        else:
            rows, scale = _tile(
                values + batch * pages, value_scales + batch * pages, slot, seen, column, head,
                page, value_head, value_row, DIM, KIND,
            )  # fmt: skip
            share *= scale[None, :]
        sum_ = sum_ * before[:, None] + tl.dot(share, rows, input_precision="ieee")
        highest = higher
    out = ((batch * GROUPS + head) * SPLITS + split) * GROUP
    tl.store(sums + (out + member)[:, None] * DIM + column[None, :], sum_, mask=asked)
    tl.store(weights + (out + member) * 2, highest, mask=member < GROUP)
    tl.store(weights + (out + member) * 2 + 1, total, mask=member < GROUP)


class TritonDecodeKernel:
    """The kernel over the rows of one layer. What it is told is kept while the pages stay."""

    def __init__(
        self,
        keys: PagedTensor,
        values: PagedTensor | None,
        rope: RotaryEmbedding | None,
        scale: Float[Tensor, " head_dim"] | None,
        slopes: Sequence[float] | None,
    ) -> None:
        """Over these rows; those of the keys are the values, too, where there are no others.

        Each is multiplied by `scale` and turned when it is read as a key.
        """
        self.keys = keys
        self.values = values or keys
        self.shared = values is None
        self.rope = rope
        self.scale = None if scale is None else scale.detach().float()
        self.slopes = slopes and torch.tensor(slopes, device=keys.table.device)
        self._version = -1
        self._told: tuple[PagePointers, PagePointers] | None = None

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """As of any `OnePass`."""
        batch, roots, group, head_dim = query.shape
        device, like = query.device, query.detach().float().contiguous()
        begins, ends = (_each(slots, batch, device) for slots in (first, end))
        longest = _most(end) - _least(first)
        splits = max(1, min(-(-longest // TILE), ENOUGH // (batch * roots)))
        stretch = -(-longest // (splits * TILE)) * TILE
        splits = -(-longest // stretch)
        sums = like.new_zeros(batch, roots, splits, group, head_dim)
        weights = like.new_empty(batch, roots, splits, group, 2)
        keys, values = self._paged()
        table = self.rope.table(_most(end) + TILE, like) if self.rope else like
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
                stretch,
                keys.rows,
                keys.head_stride,
                keys.row_stride,
                values.head_stride,
                values.row_stride,
                GROUP=group,
                GROUPS=roots,
                SPLITS=splits,
                DIM=head_dim,
                WIDE=max(FEWEST, triton.next_power_of_2(head_dim)),
                PADDED=max(FEWEST, triton.next_power_of_2(group)),
                BLOCK=TILE,
                TURN=self.rope.rope.dims if self.rope else 0,
                SHARED=self.shared,
                SCALED=self.scale is not None,
                SLOPED=self.slopes is not None,
                KIND=KINDS[DTYPES[self.keys.format.name]],
            )
        highest, total = weights.unbind(-1)
        # A stretch without a row of this sequence has -inf as its highest, and weighs nothing.
        share = (highest - highest.amax(2, keepdim=True)).exp()
        return (sums * share[..., None]).sum(2) / (total * share).sum(2)[..., None]

    def _paged(self) -> tuple[PagePointers, PagePointers]:
        """Where the rows lie."""
        version = self.keys.table.version
        if self._told is None or version != self._version:
            own = self.keys.paged().on(self.keys.table.device)
            self._told = own, own if self.shared else self.values.paged().on(own.addresses.device)
            self._version = version
        return self._told


def _each(slots: Slots, batch: int, device: torch.device) -> Int[Tensor, " batch"]:
    return torch.tensor([slots] * batch if isinstance(slots, int) else slots, device=device)


def _most(slots: Slots) -> int:
    return slots if isinstance(slots, int) else max(slots)


def _least(slots: Slots) -> int:
    return slots if isinstance(slots, int) else min(slots)
