"""The inputs, weights and attention of each layer on a batch, as arrays."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from qkvbench.analysis import Layer
from qkvbench.backends.common.role_matrices import owner_name, role_matrices, without_rope
from qkvbench.backends.jax.attention.layer import Attention, Heads, Lengths, Stream
from qkvbench.backends.jax.attention.softmax import products_of
from qkvbench.backends.jax.models.build import Network
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.variant import ROLES, Derivation, Role

# The fields of a `Layer` besides its name: an array each, or one for each role.
LayerArrays = dict[str, Any]
# What follows a tower's prefix, and comes before a block's number, in the names of weights.
BLOCKS = "blocks."
# A layer, its weights, its input and the roots of layers below.
LayerInput = tuple[Attention, Weights, Stream, Mapping[Derivation, Heads]]


def inspect_arrays(
    network: Network, weights: Weights, *network_inputs: Any
) -> dict[str, LayerArrays]:
    """Every self-attention layer on these inputs, by name; to be compiled.

    Cross-attention is left out: its rows and columns belong to two sequences.
    """
    arrays: dict[str, LayerArrays] = {}

    def record(
        name: str,
        layer: Attention,
        own: Weights,
        x: Stream,
        lengths: Lengths | None,
        lent: Mapping[Derivation, Heads],
    ) -> None:
        arrays[name] = _arrays(name, (layer, own, x, lent), lengths, arrays)

    network.hidden(weights, *network_inputs, on_attention=record)
    return arrays


def to_layers(network: Network, arrays: Mapping[str, LayerArrays]) -> tuple[Layer, ...]:
    """The layers in network order, from the result of `inspect_arrays`."""
    # A compiled function gives them in alphabetical order, and a layer may have no parameter.
    towers = list(dict.fromkeys(name.partition(BLOCKS)[0] for name in network.parameters))

    def place(name: str) -> tuple[int, int]:
        tower, _, block = name.partition(BLOCKS)
        return towers.index(tower), int(block.partition(".")[0])

    return tuple(_layer(name, arrays[name]) for name in sorted(arrays, key=place))


def _arrays(
    name: str, layer: LayerInput, lengths: Lengths | None, below: Mapping[str, LayerArrays]
) -> LayerArrays:
    """The arrays of the layer of this name; `below` are those of the layers before it."""
    attention, weights, x, lent = layer
    plan, positions = attention.plan, np.arange(x.shape[1])
    made, maps = attention.project(weights, x) | dict(lent), attention.head_maps(weights)
    rope = partial(attention.rotate, at=positions, end=len(positions))
    q, k = (attention.whole(weights, role, made, maps, rope) for role in ("q", "k"))
    projections: dict[Role, Array] = {}  # (batch, time, heads, width)
    for role in ROLES:
        if plan.layers_below(role):
            projections[role] = below[owner_name(name, plan, role)]["projections"][role]
        else:
            derivation = without_rope(plan.derivations[role])
            rows = attention.make(weights, derivation, made, maps, rope)
            projections[role] = upcast(jnp.swapaxes(rows, 1, 2))
    q = attention.scale_by_position(q, positions)
    k = jnp.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = products_of(q * q.shape[-1] ** -0.5, k).astype(q.dtype)
    mask = attention.softmax.visible(positions, positions, lengths)
    mask = jnp.broadcast_to(mask, (len(x), 1, *scores.shape[2:]))[:, 0]  # (batch, time, time)
    valid = jnp.ones_like(mask[:, :, 0])  # (batch, time)
    if lengths is not None:
        valid = positions < lengths[:, None]
    if attention.linear:
        attention_weights = attention.linear.attention_weights(
            q, k, attention.project(weights, x), mask[:, None]
        )
    else:
        attention_weights = attention.softmax.attention_weights(
            weights, scores, positions, positions, len(positions), lengths
        )
    return {
        "weights": {role: upcast(each) for role, each in _weights(attention, weights).items()},
        "projections": projections,
        "scores": upcast(scores),
        "attention_weights": attention_weights,
        "mask": mask & valid[:, :, None],
        "valid": valid,
    }


def _layer(name: str, arrays: LayerArrays) -> Layer:
    plain = {part: np.array(arrays[part]) for part in ("scores", "attention_weights", "mask")}
    valid = np.array(arrays["valid"])
    return Layer(
        name=name,
        weights={role: np.array(each) for role, each in arrays["weights"].items()},
        # (valid positions of all items, heads, head_dim)
        projections={role: np.array(each)[valid] for role, each in arrays["projections"].items()},
        **plain,
    )


def _weights(attention: Attention, weights: Weights) -> dict[Role, Array]:
    """The matrix of each role from the stream, with learned maps and scales applied."""
    plan, dtype = attention.plan, attention.dtype(weights)
    roots: dict[str, Array] = {}
    for root in plan.roots:
        if root.is_below:
            continue
        # A root without a matrix is the stream itself, split into heads.
        matrix = weights.get(f"{root.name}.weight")
        if matrix is None:
            matrix = jnp.eye(plan.geometry.d_model, dtype=dtype)
        matrix = matrix.reshape(-1, root.width, matrix.shape[-1])  # (heads, width, d_model)
        roots[root.name] = matrix
    maps = {role: each.astype(dtype) for role, each in attention.head_maps(weights).items()}
    scales = {role: weights[f"{role}.scale"].astype(dtype) for role in plan.scaled_roles}
    return role_matrices(plan, roots, maps, scales)
