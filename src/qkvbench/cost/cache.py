"""The size of a decoding cache, computed from the plans and nothing else."""

from dataclasses import dataclass
from typing import Literal, get_args

from qkvbench.model import Model
from qkvbench.variant import Mask, Plan

CacheDtype = Literal["fp64", "fp32", "bf16", "fp16", "int8", "int4"]
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)


@dataclass(frozen=True)
class CacheFormat:
    """How the row of one head is stored: bits of each number, and scales of quantized groups.

    ``group`` numbers share one scale of ``scale_bytes``; None is the whole row.
    """

    name: CacheDtype
    bits: int
    scale_bytes: int = 0
    group: int | None = None

    @property
    def is_quantized(self) -> bool:
        """True if rows are integers with scales."""
        return self.scale_bytes > 0

    def groups(self, width: int) -> int:
        """How many groups a row of `width` numbers has."""
        return -(-width // self.group) if self.group else 1

    def row_bytes(self, width: int) -> int:
        """Bytes of one row of `width` numbers, scales included."""
        return -(-width * self.bits // 8) + self.groups(width) * self.scale_bytes


CACHE_FORMATS: dict[CacheDtype, CacheFormat] = {
    each.name: each
    for each in (
        CacheFormat("fp64", 64),
        CacheFormat("fp32", 32),
        CacheFormat("bf16", 16),
        CacheFormat("fp16", 16),
        CacheFormat("int8", 8, scale_bytes=4),
        CacheFormat("int4", 4, scale_bytes=4, group=32),
    )
}
HALF = CACHE_FORMATS["bf16"]
# Linear attention keeps its sums in fp32, whatever the format of rows.
STATE_BYTES = 4


def cached_values(plan: Plan) -> int:
    """Numbers cached in one layer for each past token, scales left out."""
    return sum(tensor.heads * tensor.width for tensor in plan.cached)


def cached_bytes(plan: Plan, format: CacheFormat) -> int:
    """Bytes cached in one layer for each past token."""
    return sum(tensor.heads * format.row_bytes(tensor.width) for tensor in plan.cached)


def state_bytes(model: Model) -> int:
    """Bytes that all layers keep of a text however long it is: the states of linear attention."""
    states = [plan.state for plan in model.plans if plan and plan.state]
    return sum(STATE_BYTES * state.numbers for state in states) if model.decodes else 0


def cache_tensors(model: Model) -> int:
    """How many tensors the cache of all layers has, without those of a source."""
    if not model.decodes:
        return 0
    return sum(len(plan.cached) + (plan.state is not None) for plan in model.plans if plan)


def cache_bytes_per_token(model: Model, format: CacheFormat = HALF) -> int | None:
    """Bytes cached for each past token in all layers; None if the model has no cache.

    Without the states of linear attention, which no token makes larger.
    """
    if not model.decodes:
        return None
    return sum(cached_bytes(plan, format) for plan in model.plans if plan)


def cache_bytes(
    model: Model, tokens: int, sequences: int, format: CacheFormat, page: int | None = None
) -> int:
    """Bytes of a cache after `tokens` of each of `sequences` have been read one after the other.

    In pages of `page` rows, from which a window frees; None is one page for each sequence, which
    frees nothing. Without page tables, and without the rows of a source.
    """
    rows = sum(
        held_rows(tokens, page, plan.mask) * cached_bytes(plan, format)
        for plan in model.plans
        if plan
    )
    return sequences * (rows + state_bytes(model))


def held_rows(tokens: int, page: int | None, mask: Mask) -> int:
    """The most rows that a sequence of `tokens` has room for, in pages that a window frees."""
    if page is None:
        return tokens
    pages = -(-tokens // page)
    if mask.local is not None:
        # At worst it lies in one page more than it fills; pages of sinks are never freed.
        sinks = -(-mask.sinks // page)
        pages = min(pages, sinks + (mask.local + page - 2) // page + 1)
    return pages * page


def source_bytes_per_token(model: Model, format: CacheFormat = HALF) -> int:
    """Bytes cached for each token of a source in all layers; 0 if the model reads none."""
    return sum(cached_bytes(plans.cross, format) for plans in model.layers[0] if plans.cross)
