"""The operations of a plan on rows of heads: the only module in which torch carries them out.

It knows plans and tensors only, so that whatever has roots and weights can use it: the layer of
this backend, and one inside another library's model.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench.variant import (
    ApplyRope,
    ApplyRotation,
    Derivation,
    Fixed,
    MakeZeros,
    Normalize,
    Op,
    Role,
    Scale,
    UpProject,
)

# `_` is checked for nothing: roots of one plan may differ in heads, in width and, across, in time.
Heads = Float[Tensor, "batch _heads _time _width"]
# Learned maps of heads, by role: rotations, and up-projections of a latent.
Maps = Mapping[Role, Float[Tensor, "_heads _to _width"]]

# Added to the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6


def make(
    derivation: Derivation, made: dict[Derivation, Heads], apply: Callable[..., Heads]
) -> Heads:
    """The tensor at the end of a derivation. A prefix that two share is computed once.

    `made` holds the roots and what was computed before; `apply` applies operations to rows.
    """
    if derivation not in made:
        before = make(Derivation(derivation.root, derivation.ops[:-1]), made, apply)
        made[derivation] = apply(derivation.ops[-1:], before)
    return made[derivation]


def apply(
    ops: tuple[Op, ...],
    rows: Heads,
    maps: Maps,
    scale: Callable[[Role], Tensor],
    rope: Callable[..., Heads] | None,
    eps: float = NORM_EPS,
) -> Heads:
    """The rows after these operations; `scale` gives the learned scale of a role."""
    for op in ops:
        match op:
            case ApplyRotation():
                rows = rotate(rows, _matrix(op, maps))
            case UpProject(role):
                rows = _up_project(rows, maps[role])
            case Normalize():
                rows = rms_norm(rows, eps)
            case Scale(role):
                rows = rows * scale(role).to(rows.dtype)
            case ApplyRope(back):
                assert rope, "only a plan with RoPE applies it"
                rows = rope(rows, back=back)
            case MakeZeros(heads, width):
                rows = rows.new_zeros(len(rows), heads, rows.shape[2], width)
    return rows


def absorb_into_query(
    query: Heads, ops: tuple[Fixed, ...], maps: Maps, scale: Callable[[Role], Tensor]
) -> Heads:
    """Queries whose products with cached rows are those of `query` with K."""
    for op in reversed(ops):
        match op:
            case ApplyRotation() | UpProject():
                query = _map_heads(query, _matrix(op, maps).mT)
            case Scale(role):
                query = query * scale(role).to(query.dtype)
    return query


def absorb_into_output(
    context: Heads, ops: tuple[ApplyRotation | UpProject, ...], maps: Maps
) -> Heads:
    """The output of attention over V, from the output of attention over its cached root."""
    for op in ops:
        context = _map_heads(context, _matrix(op, maps))
    return context


def rotation(
    numbers: Float[Tensor, "heads pairs"], head_dim: int
) -> Float[Tensor, "heads head_dim head_dim"]:
    """Learned numbers as orthogonal matrices, by Cayley: (1 - A/2)^-1 (1 + A/2).

    In fp32 at least, whatever the dtype of the weights: the solver has nothing smaller.
    """
    numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
    row, column = torch.triu_indices(head_dim, head_dim, 1, device=numbers.device)
    above = numbers.new_zeros(len(numbers), head_dim, head_dim)
    above[:, row, column] = numbers
    skew = above - above.transpose(1, 2)
    one = torch.eye(head_dim, dtype=numbers.dtype, device=numbers.device)
    return torch.linalg.solve(one - skew / 2, one + skew / 2)


def generator(
    matrices: Float[Tensor, "heads head_dim head_dim"],
) -> Float[Tensor, "heads pairs"]:
    """The inverse of `rotation`, for matrices without the eigenvalue -1."""
    head_dim = matrices.shape[-1]
    one = torch.eye(head_dim, dtype=matrices.dtype, device=matrices.device)
    skew = 2 * torch.linalg.solve(matrices + one, matrices - one, left=False)
    row, column = torch.triu_indices(head_dim, head_dim, 1, device=matrices.device)
    return skew[:, row, column]


def rotate(rows: Heads, matrix: Float[Tensor, "_heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return rows @ matrix.to(rows.dtype).mT


def rms_norm(rows: Heads, eps: float = NORM_EPS) -> Heads:
    """Each head of each row at root mean square 1, computed in fp32 or better."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt()).to(rows.dtype)


def _up_project(rows: Heads, matrix: Float[Tensor, "heads head_dim rank"]) -> Heads:
    """Heads from latents, one latent for each row."""
    made = torch.nn.functional.linear(rows[:, 0], matrix.to(rows.dtype).flatten(0, 1))
    return made.unflatten(-1, matrix.shape[:2]).transpose(1, 2)


def _map_heads(rows: Heads, matrix: Float[Tensor, "kv_heads to width"]) -> Heads:
    """Every row of a query head times the matrix of its key/value head."""
    grouped = rows.unflatten(1, (len(matrix), -1))
    return torch.einsum("bgntr,gdr->bgntd", grouped, matrix.to(rows.dtype)).flatten(1, 2)


def _matrix(op: ApplyRotation | UpProject, maps: Maps) -> Float[Tensor, "heads to width"]:
    return maps[op.role].mT if isinstance(op, ApplyRotation) and op.back else maps[op.role]
