"""What decoding keeps of each past token, computed from the plans and nothing else."""

from qkvbench.model import Model
from qkvbench.variant import Plan


def cached_values(plan: Plan) -> int:
    """Numbers kept in one layer's cache for each past token."""
    return sum(kept.heads for kept in plan.kept) * plan.geometry.head_dim


def cache_tensors(model: Model) -> int:
    """How many tensors the cache of all layers consists of."""
    return sum(len(plan.kept) for plan in model.plans if plan) if model.causal else 0


def cache_bytes_per_token(model: Model, value_bytes: int = 2) -> int | None:
    """Bytes kept for each past token in all layers; None where the model has no cache."""
    if not model.causal:
        return None
    return value_bytes * sum(cached_values(plan) for plan in model.plans if plan)
