"""The inputs, weights and attention of each layer on a batch, as arrays."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends.common.role_matrices import owner_name, role_matrices, without_rope
from qkvbench.backends.torch.attention.layer import Attention, Heads, Lengths, Stream
from qkvbench.backends.torch.models.build import Network
from qkvbench.variant import ROLES, Derivation, Role


class LayerInput(NamedTuple):
    """The input of an attention layer: stream, lengths without padding, roots of layers below."""

    stream: Stream
    lengths: Lengths | None
    lent: Mapping[Derivation, Heads]


@torch.no_grad()
def inspect_layers(
    network: Network, inputs: Tensor, *extra_inputs: Tensor | None
) -> tuple[Layer, ...]:
    """Every self-attention layer on these inputs, first to last.

    Cross-attention is left out: its rows and columns belong to two sequences.
    """
    layers = {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, Attention) and not part.plan.is_cross
    }
    layer_inputs: dict[str, LayerInput] = {}

    def record(
        name: str, _layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        stream, _, lengths = arguments
        layer_inputs[name] = LayerInput(stream, lengths, dict(named["made"]))

    hooks = [
        part.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, part in layers.items()
    ]
    try:
        network.hidden(inputs, *extra_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Layer] = {}
    for name, part in layers.items():
        found[name] = _layer(name, part, layer_inputs[name], found)
    return tuple(found.values())


def _layer(name: str, attention: Attention, given: LayerInput, below: Mapping[str, Layer]) -> Layer:
    """The layer of this name; `below` are those before it."""
    plan, (x, lengths, lent) = attention.plan, given
    made, maps = attention.project(x) | dict(lent), attention.head_maps()
    q, k = (attention.whole(role, made, maps) for role in ("q", "k"))
    rows: dict[Role, Heads] = {
        role: attention.make(without_rope(plan.derivations[role]), made, maps)
        for role in ROLES
        if not plan.layers_below(role)
    }
    group = q.shape[1] // k.shape[1]
    positions = torch.arange(x.shape[1], device=x.device)
    q = attention.scale_by_position(q, positions)
    scores = q * q.shape[-1] ** -0.5 @ k.repeat_interleave(group, dim=1).mT
    mask = attention.softmax.visible(positions, positions, lengths)
    mask = mask.expand(len(x), 1, -1, -1)[:, 0]  # (batch, time, time)
    valid = torch.ones_like(mask[:, :, 0])  # (batch, time)
    if lengths is not None:
        valid = positions < lengths[:, None]
    if attention.linear:
        attention_weights = attention.linear.attention_weights(
            q, k, attention.project(x), mask[:, None]
        )
    else:
        attention_weights = attention.softmax.attention_weights(
            scores, positions, positions, len(positions), lengths
        )
    return Layer(
        name=name,
        weights=_weights(attention),
        # (valid positions of all items, heads, head_dim)
        projections={
            role: _array(rows[role].transpose(1, 2)[valid])
            if role in rows
            else below[owner_name(name, plan, role)].projections[role]
            for role in ROLES
        },
        scores=_array(scores),
        attention_weights=_array(attention_weights),
        mask=(mask & valid[:, :, None]).cpu().numpy(),
    )


def _weights(attention: Attention) -> dict[Role, np.ndarray]:
    """The matrix of each role from the stream, with learned maps and scales applied."""
    plan, named, like = attention.plan, attention.named_weights(), attention.like
    roots: dict[str, Tensor] = {}
    for root in plan.roots:
        if root.is_below:
            continue
        # A root without a matrix is the stream itself, split into heads.
        matrix = named.get(f"{root.name}.weight")
        if matrix is None:
            matrix = torch.eye(plan.geometry.d_model, dtype=like.dtype, device=like.device)
        roots[root.name] = matrix.unflatten(0, (-1, root.width))  # (heads, width, d_model)
    maps = {role: each.to(like.dtype) for role, each in attention.head_maps().items()}
    scales = {part: attention.vector(f"{part}.scale") for part in plan.scaled_roles}
    matrices = role_matrices(plan, roots, maps, scales)
    return {role: _array(matrix) for role, matrix in matrices.items()}


def _array(tensor: Tensor) -> np.ndarray:
    """The numbers in fp32 or better, because NumPy has no bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).cpu().numpy()
