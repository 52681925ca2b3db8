"""What decoding keeps of each past token, computed from the plans and nothing else."""

from dataclasses import dataclass
from typing import Literal, get_args

from qkvbench.model import Decoder, EncoderDecoder, Model
from qkvbench.variant import Plan

RowName = Literal["fp64", "fp32", "bf16", "fp16", "int8"]
ROW_NAMES: tuple[RowName, ...] = get_args(RowName)


@dataclass(frozen=True)
class RowType:
    """How one head's row is stored: bytes of each number, and of the scale that stands beside."""

    name: RowName
    value_bytes: int
    scale_bytes: int = 0


ROW_TYPES: dict[RowName, RowType] = {
    kind.name: kind
    for kind in (
        RowType("fp64", 8),
        RowType("fp32", 4),
        RowType("bf16", 2),
        RowType("fp16", 2),
        RowType("int8", 1, scale_bytes=4),
    )
}


def cached_values(plan: Plan) -> int:
    """Numbers kept in one layer's cache for each past token, scales left out."""
    return cached_rows(plan) * plan.geometry.head_dim


def cached_rows(plan: Plan) -> int:
    """Rows of heads kept in one layer's cache for each past token."""
    return sum(kept.heads for kept in plan.kept)


def layer_bytes_per_token(plan: Plan, kind: RowType) -> int:
    """Bytes kept in one layer for each past token, scales included."""
    return cached_values(plan) * kind.value_bytes + cached_rows(plan) * kind.scale_bytes


def cache_tensors(model: Model) -> int:
    """How many tensors the cache of all layers consists of, a source's left out."""
    return sum(len(plan.kept) for plan in model.plans if plan) if _decodes(model) else 0


def cache_bytes_per_token(model: Model, value_bytes: int = 2, scale_bytes: int = 0) -> int | None:
    """Bytes kept for each past token in all layers; None where the model has no cache."""
    if not _decodes(model):
        return None
    plans = [plan for plan in model.plans if plan]
    values = sum(cached_values(plan) for plan in plans)
    return value_bytes * values + scale_bytes * sum(cached_rows(plan) for plan in plans)


def source_bytes_per_token(model: Model, value_bytes: int = 2) -> int:
    """Bytes kept for each token of a source in all layers; 0 where the model reads none."""
    plans = [cross for _, cross in model.plans_of(model.towers[0]) if cross]
    return value_bytes * sum(cached_values(plan) for plan in plans)


def _decodes(model: Model) -> bool:
    return isinstance(model.stack, Decoder | EncoderDecoder)
