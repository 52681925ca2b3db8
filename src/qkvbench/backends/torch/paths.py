"""What the operations of a plan do to rows of heads: the one place where torch follows a path.

It knows plans and tensors only, so that whatever has roots and weights can follow them: the layer
of this backend, and one that lives in another library's model.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench.variant import Normalize, Op, Path, Role, Rotate, Scale, Turn

# `_` is checked for nothing: roots of one plan may differ in heads and, across, in time.
Heads = Float[Tensor, "batch _heads _time head_dim"]
Maps = Mapping[Role, Float[Tensor, "_heads head_dim head_dim"]]

# Below the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6


def make(path: Path, made: dict[Path, Heads], follow: Callable[..., Heads]) -> Heads:
    """The tensor at the end of `path`. What two paths have in common is made once.

    `made` holds the roots, and what was made before; `follow` applies operations to rows.
    """
    if path not in made:
        before = make(Path(path.root, path.ops[:-1]), made, follow)
        made[path] = follow(path.ops[-1:], before)
    return made[path]


def follow(
    ops: tuple[Op, ...],
    rows: Heads,
    rotations: Maps,
    scale: Callable[[Role], Tensor],
    turn: Callable[..., Heads],
    eps: float = NORM_EPS,
) -> Heads:
    """The rows after these operations; `scale` gives the learned numbers of a role."""
    for op in ops:
        match op:
            case Rotate():
                rows = rotated(rows, _matrix(op, rotations))
            case Normalize():
                rows = normalized(rows, eps)
            case Scale(role):
                rows = rows * scale(role).to(rows.dtype)
            case Turn(back):
                rows = turn(rows, back=back)
    return rows


def unfold(seen: Heads, ops: tuple[Rotate, ...], rotations: Maps) -> Heads:
    """What attending over V would have given, from what attending over its kept root gave."""
    for op in ops:
        matrix = _matrix(op, rotations)
        seen = rotated(seen, matrix.repeat_interleave(seen.shape[1] // len(matrix), dim=0))
    return seen


def rotation(
    numbers: Float[Tensor, "heads pairs"], head_dim: int
) -> Float[Tensor, "heads head_dim head_dim"]:
    """Learned numbers as orthogonal matrices, by Cayley: (1 - A/2)^-1 (1 + A/2).

    In fp32 at least, whatever the weights are in: the solver knows nothing less.
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
    """The numbers of which `rotation` makes these matrices, which have no eigenvalue -1."""
    head_dim = matrices.shape[-1]
    one = torch.eye(head_dim, dtype=matrices.dtype, device=matrices.device)
    skew = 2 * torch.linalg.solve(matrices + one, matrices - one, left=False)
    row, column = torch.triu_indices(head_dim, head_dim, 1, device=matrices.device)
    return skew[:, row, column]


def rotated(rows: Heads, matrix: Float[Tensor, "_heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return rows @ matrix.to(rows.dtype).mT


def normalized(rows: Heads, eps: float = NORM_EPS) -> Heads:
    """Each head of each row at root mean square 1, computed in fp32 or better."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt()).to(rows.dtype)


def _matrix(op: Rotate, rotations: Maps) -> Float[Tensor, "_heads head_dim head_dim"]:
    return rotations[op.role].mT if op.back else rotations[op.role]
