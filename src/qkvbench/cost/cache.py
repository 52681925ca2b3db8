"""What decoding keeps of each past token, computed from the plans and nothing else."""

from qkvbench.model import Decoder, EncoderDecoder, Model
from qkvbench.variant import Plan


def cached_values(plan: Plan) -> int:
    """Numbers kept in one layer's cache for each past token."""
    return sum(kept.heads for kept in plan.kept) * plan.geometry.head_dim


def cache_tensors(model: Model) -> int:
    """How many tensors the cache of all layers consists of, a source's left out."""
    return sum(len(plan.kept) for plan in model.plans if plan) if _decodes(model) else 0


def cache_bytes_per_token(model: Model, value_bytes: int = 2) -> int | None:
    """Bytes kept for each past token in all layers; None where the model has no cache."""
    if not _decodes(model):
        return None
    return value_bytes * sum(cached_values(plan) for plan in model.plans if plan)


def source_bytes_per_token(model: Model, value_bytes: int = 2) -> int:
    """Bytes kept for each token of a source in all layers; 0 where the model reads none."""
    plans = [cross for _, cross in model.plans_of(model.towers[0]) if cross]
    return value_bytes * sum(cached_values(plan) for plan in plans)


def _decodes(model: Model) -> bool:
    return isinstance(model.stack, Decoder | EncoderDecoder)
