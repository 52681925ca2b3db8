"""Needs of a plan for a kernel that decodes over its cached rows; the machine is not asked."""

from collections.abc import Set

from qkvbench import native
from qkvbench.variant import ApplyRope, Plan, Scale

# The order in which a kernel applies operations to a cached row that it reads as a key.
KEY_OPS = ((), (Scale,), (ApplyRope,), (Scale, ApplyRope))

# Features of a plan as a person would say them; others are said by their names.
WORDS = {
    "mask.diagonal": "masked diagonal",
    "mask.blocks": "blocks of keys",
    "scores.softcap": "soft cap on scores",
    "scores.sink_logit": "sink logit",
    "bias.Separable": "learned bias of row and column",
    "bias.Relative": "learned bias of the distance",
    "bias.Bucketed": "learned bias for buckets of distance",
    "rope_head": "part of K that alone gets RoPE",
    "read.Normalize": "norm of K on read",
    "read.ApplyMap": "learned map of K on read",
    "read.UpProject": "up-projection of K on read",
    "read.Shift": "bias of K on read",
    "read.MakeZeros": "zeros as K",
    "scores.linear": "linear attention",
    "read.Take": "K of a part of the row",
}


def missing(plan: Plan, supported: Set[str]) -> list[str]:
    """The needs of a plan that a kernel with these features does not have; none if it runs it."""
    found = sorted(WORDS.get(name, name) for name in plan.features - supported)
    if plan.state:
        return found
    key, value = plan.cached_key, plan.cached_value
    if (key.heads, key.width) != (value.heads, value.width):
        found.append("cached K and V of two shapes")
    ops = plan.key_ops_on_read
    if not found and tuple(type(op) for op in ops) not in KEY_OPS:
        found.append("another order of operations on K")
    if any(isinstance(op, Scale) and len(op.shape) > 1 for op in ops):
        found.append("a scale for each head of K")
    return found


def missing_natively(plan: Plan, kind: str) -> list[str]:
    """The needs of a plan that the native kernel does not have, over rows of this kind."""
    found = missing(plan, native.CAPABILITIES.features)
    if plan.state:
        return found
    width = plan.cached_key.width
    if not native.CAPABILITIES.can_run(kind, width):
        found.append(f"rows of {width} numbers in {kind}")
    return found
