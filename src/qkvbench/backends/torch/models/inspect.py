"""What each attention layer makes of a batch, as arrays to be looked into."""

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends.torch.attention.layer import Attention, Heads, Lengths, Stream
from qkvbench.backends.torch.models.build import Network
from qkvbench.variant import ROLES, ApplyRope, ApplyRotation, Path, Role, Scale, UpProject


@torch.no_grad()
def inspected(network: Network, inputs: Tensor, *beside: Tensor | None) -> tuple[Layer, ...]:
    """Every layer of attention over its own stream, first to last, on these inputs.

    Attention across is not looked into: its rows and columns are of two sequences.
    """
    layers = {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, Attention) and not part.plan.is_cross
    }
    seen: dict[str, tuple[Stream, Lengths | None]] = {}

    def keep(name: str, _layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        stream, _, lengths = arguments
        seen[name] = (stream, lengths)

    hooks = [part.register_forward_pre_hook(partial(keep, name)) for name, part in layers.items()]
    try:
        network.hidden(inputs, *beside)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(_layer(name, part, *seen[name]) for name, part in layers.items())


def _layer(name: str, attention: Attention, x: Stream, lengths: Lengths | None) -> Layer:
    plan = attention.plan
    made, maps = attention.project(x), attention.maps()
    rows: dict[Role, Heads] = {
        role: attention.make(_before_turn(plan.derivations[role]), made, maps) for role in ROLES
    }
    q, k = (attention.make(plan.derivations[role], made, maps) for role in ("q", "k"))
    group = q.shape[1] // k.shape[1]
    scores = q * q.shape[-1] ** -0.5 @ k.repeat_interleave(group, dim=1).mT
    places = torch.arange(x.shape[1], device=x.device)
    seen = attention.scores.seen(places, places, lengths).expand(len(x), 1, -1, -1)[:, 0]
    read = torch.ones_like(seen[:, :, 0])
    if lengths is not None:
        read = places < lengths[:, None]
    told: dict[Role, np.ndarray] = {
        role: _array(part.transpose(1, 2)[read]) for role, part in rows.items()
    }
    return Layer(
        name=name,
        weights=_weights(attention),
        projections=told,
        scores=_array(scores),
        attention_weights=_array(attention.scores.shares(scores, places, lengths)),
        mask=(seen & read[:, :, None]).cpu().numpy(),
    )


def _before_turn(path: Path) -> Path:
    """The way to a role without positions: K is turned and V is not, whatever they share."""
    return Path(path.root, tuple(op for op in path.ops if not isinstance(op, ApplyRope)))


def _weights(attention: Attention) -> dict[Role, Float[np.ndarray, "_heads head_dim d_model"]]:
    """The matrix of each role from the stream, learned maps and scales included."""
    plan, named, maps = attention.plan, attention.split(), attention.maps()
    widths = {root.name: root.width for root in plan.roots}
    like = attention.o.weight
    matrices: dict[Role, Heads] = {}
    for role in ROLES:
        path = plan.derivations[role]
        # Roots without a matrix are the stream itself, cut into heads.
        matrix = named.get(f"{path.root}.weight")
        if matrix is None:
            matrix = torch.eye(plan.geometry.d_model, dtype=like.dtype, device=like.device)
        matrix = matrix.unflatten(0, (-1, widths[path.root]))
        for op in path.ops:
            match op:
                case ApplyRotation(of, back):
                    turn = maps[of].to(matrix.dtype)
                    matrix = (turn.mT if back else turn) @ matrix
                case UpProject(of):
                    matrix = maps[of] @ matrix
                case Scale(of):
                    matrix = attention.scale[of][:, None] * matrix
                case _:
                    pass
        matrices[role] = matrix
    return {role: _array(matrix) for role, matrix in matrices.items()}


def _array(tensor: Tensor) -> np.ndarray:
    """The numbers in fp32 or better, for NumPy knows no bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).cpu().numpy()
