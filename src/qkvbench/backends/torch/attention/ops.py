"""The operations of a plan on rows of heads: the only module in which torch carries them out.

It knows plans and tensors only, so that whatever has roots and weights can use it: the layer of
this backend, and one inside another library's model.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench.variant import (
    ApplyMap,
    ApplyRope,
    Clamp,
    Derivation,
    DownProject,
    Fixed,
    MakeZeros,
    Mix,
    Multiply,
    Normalize,
    Op,
    OutputMap,
    Scale,
    Shift,
    Take,
    UpProject,
)

# `_` is checked for nothing: roots of one plan may differ in heads, in width and, across, in time.
Heads = Float[Tensor, "batch _heads _time _width"]
# Learned maps of heads, by what they make: rotations, any matrices, up-projections of a latent.
Maps = Mapping[str, Float[Tensor, "_heads _to _width"]]
# The learned scales and biases of heads by their names in the plan: (width,) or (heads, width).
HeadVectors = Callable[[str], Tensor]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The context of sums that bf16 or fp16 would make coarse.

    It is only entered if autocast is on: an exported program would keep it as an operation of its
    own, which `torch.export.load` of torch 2.13 refuses and ONNX lacks.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


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


def apply(  # noqa: C901, PLR0912 - one case for each operation
    ops: tuple[Op, ...],
    rows: Heads,
    maps: Maps,
    vectors: HeadVectors,
    rope: Callable[..., Heads] | None,
    made: Mapping[Derivation, Heads] = MappingProxyType({}),
) -> Heads:
    """The rows after these operations; `made` has what may be mixed into them."""
    for op in ops:
        match op:
            case ApplyMap():
                rows = map_rows(rows, _matrix(op, maps))
            case UpProject(part):
                rows = _up_project(rows, maps[part])
            case DownProject(part, groups):
                rows = _down_project(rows, maps[part], groups)
            case Take(width):
                rows = rows[..., :width]
            case Multiply(by, width):
                rows = torch.cat([rows[..., :width] * by, rows[..., width:]], dim=-1)
            case Clamp(most):
                rows = rows.clamp(-most, most)
            case Normalize():
                rows = normalize(rows, op)
            case Scale(part):
                rows = rows * _of_heads(vectors(f"{part}.scale"), rows)
            case Shift(part):
                rows = rows + _of_heads(vectors(f"{part}.shift"), rows)
            case Mix(root, part):
                share = vectors(f"{part}.mix").to(rows.dtype)
                rows = torch.lerp(rows, made[Derivation(root, ())].to(rows.dtype), share)
            case ApplyRope(back):
                assert rope is not None, "only a plan with RoPE applies it"
                rows = rope(rows, back=back)
            case MakeZeros(heads, width):
                rows = rows.new_zeros(rows.shape[0], heads, rows.shape[2], width)
    return rows


def absorb_into_query(
    query: Heads, ops: tuple[Fixed, ...], maps: Maps, vectors: HeadVectors
) -> Heads:
    """Queries whose products with cached rows are those of `query` with K."""
    for op in reversed(ops):
        match op:
            case ApplyMap() | UpProject():
                query = _map_heads(query, _matrix(op, maps).mT)
            case Scale(part):
                scale = _of_heads(vectors(f"{part}.scale"), query)
                groups = 1 if scale.ndim == 1 else query.shape[1] // len(scale)
                query = query * scale.repeat_interleave(groups, dim=0)
    return query


def absorb_into_output(context: Heads, ops: tuple[OutputMap, ...], maps: Maps) -> Heads:
    """The output of attention over V, from the output of attention over its cached root."""
    for op in ops:
        match op:
            case Take(width):
                context = context[..., :width]
            case ApplyMap() | UpProject():
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


def map_rows(rows: Heads, matrix: Float[Tensor, "_heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return rows @ matrix.to(rows.dtype).mT


def normalize(rows: Heads, norm: Normalize) -> Heads:
    """The norm of each head, or of all heads of a row together, computed in fp32 or better."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    axes = (1, 3) if norm.over == "row" else -1
    if norm.kind == "layer":
        exact = exact - exact.mean(axes, keepdim=True)
    return (exact * (exact.square().mean(axes, keepdim=True) + norm.eps).rsqrt()).to(rows.dtype)


def without_own_value(context: Heads, value: Heads) -> Heads:
    """The output of each head without its part along the token's own V. arXiv:2603.09078."""
    value = value.repeat_interleave(context.shape[1] // value.shape[1], dim=1)
    # In fp16 the square of a small V is zero.
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    direction = torch.nn.functional.normalize(wide, dim=-1).to(context.dtype)
    return context - (context * direction).sum(-1, keepdim=True) * direction


def _of_heads(vector: Tensor, rows: Heads) -> Tensor:
    """A vector for all heads, or one for each, ready to be combined with rows."""
    return (vector if vector.ndim == 1 else vector[:, None]).to(rows.dtype)


def _up_project(rows: Heads, matrix: Float[Tensor, "heads head_dim rank"]) -> Heads:
    """Heads from latents: one for all heads, or each for its share of them."""
    latents = rows.shape[1]
    if latents > 1:
        grouped = matrix.to(rows.dtype).unflatten(0, (latents, -1))
        return torch.einsum("bgtr,gndr->bgntd", rows, grouped).flatten(1, 2)
    made = torch.nn.functional.linear(rows[:, 0], matrix.to(rows.dtype).flatten(0, 1))
    return made.unflatten(-1, matrix.shape[:2]).transpose(1, 2)


def _down_project(rows: Heads, matrix: Float[Tensor, "groups rank inputs"], groups: int) -> Heads:
    """The heads of each group, one after the other, times the group's matrix."""
    heads = matrix.to(rows.dtype).unflatten(-1, (-1, rows.shape[-1]))
    return torch.einsum("bgntd,grnd->bgtr", rows.unflatten(1, (groups, -1)), heads)


def _map_heads(rows: Heads, matrix: Float[Tensor, "kv_heads to width"]) -> Heads:
    """Every row of a query head times the matrix of its key/value head."""
    grouped = rows.unflatten(1, (len(matrix), -1))
    return torch.einsum("bgntr,gdr->bgntd", grouped, matrix.to(rows.dtype)).flatten(1, 2)


def _matrix(op: ApplyMap | UpProject, maps: Maps) -> Float[Tensor, "heads to width"]:
    if isinstance(op, UpProject):
        return maps[op.part]
    return maps[op.role].mT if op.back else maps[op.role]
