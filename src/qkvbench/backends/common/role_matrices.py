"""Q, K and V of an attention layer as linear maps of the stream, for inspection."""

from collections.abc import Mapping
from typing import Any

from qkvbench.variant import (
    ROLES,
    ZEROS,
    ApplyMap,
    ApplyRope,
    Derivation,
    Mix,
    Plan,
    Role,
    Scale,
    Take,
    UpProject,
)


def without_rope(derivation: Derivation) -> Derivation:
    """The derivation of a role without RoPE, which V does not have even if it shares K's root.

    V into which another is mixed is as it is, since that one is finished.
    """
    if any(isinstance(op, Mix) for op in derivation.ops):
        return derivation
    return Derivation(
        derivation.root, tuple(op for op in derivation.ops if not isinstance(op, ApplyRope))
    )


def owner_name(name: str, plan: Plan, role: Role) -> str:
    """The name of the layer whose K or V the layer `name` has: itself, or one below."""
    blocks, number, part = name.rsplit(".", 2)
    return f"{blocks}.{int(number) - plan.layers_below(role)}.{part}"


def role_matrices(
    plan: Plan,
    roots: Mapping[str, Any],
    maps: Mapping[str, Any],
    scales: Mapping[str, Any],
) -> dict[Role, Any]:
    """The matrix of each role from the stream, (heads, head_dim, d_model), as the root's array.

    Of K and V of a layer below, mixed in or not, there are none, since they are made from another
    stream; nor of zeros, which are made from none.
    Roots are given as (heads, width, d_model), learned maps as (heads, to, width), scales as
    (width,) or (heads, width), in arrays of any framework and of one dtype. The parts of Q and K
    that alone get RoPE are left out.
    """
    matrices: dict[Role, Any] = {}
    for role in ROLES:
        derivation = plan.derivations[role]
        if derivation.root == ZEROS or plan.root(derivation.root).is_below:
            continue
        if any(isinstance(op, Mix) for op in derivation.ops):
            continue
        matrix = roots[derivation.root]
        for op in derivation.ops:
            match op:
                case ApplyMap(of):
                    # Only a cache and an output have the inverse of one.
                    matrix = maps[of] @ matrix
                case UpProject(of):
                    # Of several latents each makes its share of the heads.
                    heads, width, rank = maps[of].shape
                    ups = maps[of].reshape(len(matrix), -1, rank)
                    matrix = (ups @ matrix).reshape(heads, width, -1)
                case Take(width):
                    matrix = matrix[:, :width]
                case Scale(of):
                    matrix = scales[of][..., None] * matrix
                case _:
                    # RoPE depends on the position; the other ops are not linear maps.
                    pass
        matrices[role] = matrix
    return matrices
