"""What decoding keeps of each past token, computed from the plans and nothing else."""

from dataclasses import dataclass
from typing import Literal, get_args

from qkvbench.model import Decoder, EncoderDecoder, Model
from qkvbench.variant import Plan

CacheDtype = Literal["fp64", "fp32", "bf16", "fp16", "int8"]
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)


@dataclass(frozen=True)
class CacheFormat:
    """How one head's row is stored: bytes of each number, and of the scale that stands beside."""

    name: CacheDtype
    value_bytes: int
    scale_bytes: int = 0


CACHE_FORMATS: dict[CacheDtype, CacheFormat] = {
    kind.name: kind
    for kind in (
        CacheFormat("fp64", 8),
        CacheFormat("fp32", 4),
        CacheFormat("bf16", 2),
        CacheFormat("fp16", 2),
        CacheFormat("int8", 1, scale_bytes=4),
    )
}


def cached_values(plan: Plan) -> int:
    """Numbers kept in one layer's cache for each past token, scales left out."""
    return sum(kept.heads * kept.width for kept in plan.cached)


def cached_rows(plan: Plan) -> int:
    """Rows of heads kept in one layer's cache for each past token."""
    return sum(kept.heads for kept in plan.cached)


def cache_tensors(model: Model) -> int:
    """How many tensors the cache of all layers consists of, a source's left out."""
    return sum(len(plan.cached) for plan in model.plans if plan) if _decodes(model) else 0


def cache_bytes_per_token(model: Model, value_bytes: int = 2, scale_bytes: int = 0) -> int | None:
    """Bytes kept for each past token in all layers; None where the model has no cache."""
    if not _decodes(model):
        return None
    plans = [plan for plan in model.plans if plan]
    values = sum(cached_values(plan) for plan in plans)
    return value_bytes * values + scale_bytes * sum(cached_rows(plan) for plan in plans)


def cache_bytes(
    model: Model, tokens: int, sequences: int, kind: CacheFormat, page: int | None = None
) -> int:
    """Bytes of a cache once `tokens` of each of so many `sequences` were read, one after the other.

    They lie in pages of `page` rows, and those that a window has left are given back; None is one
    page for each sequence, which keeps everything. Tables of pages are not in it, nor a source.
    """
    total = 0
    for block, plan in zip(model.blocks, model.plans, strict=True):
        if plan and block.attention:
            rows = held_rows(tokens, page, block.attention.window)
            row = cached_values(plan) * kind.value_bytes + cached_rows(plan) * kind.scale_bytes
            total += sequences * rows * row
    return total


def held_rows(tokens: int, page: int | None, window: int | None) -> int:
    """The most rows that a sequence of `tokens` has room for, in pages that a window gives back."""
    if page is None:
        return tokens
    pages = -(-tokens // page)
    if window is not None:
        # So many slots in a row lie in one page more than they fill, at worst.
        pages = min(pages, (window + page - 2) // page + 1)
    return pages * page


def source_bytes_per_token(model: Model, value_bytes: int = 2, scale_bytes: int = 0) -> int:
    """Bytes kept for each token of a source in all layers; 0 where the model reads none."""
    plans = [cross for _, cross in model.plans_of(model.towers[0]) if cross]
    values = sum(cached_values(plan) for plan in plans)
    return value_bytes * values + scale_bytes * sum(cached_rows(plan) for plan in plans)


def _decodes(model: Model) -> bool:
    return isinstance(model.architecture, Decoder | EncoderDecoder)
