"""What each attention layer makes of a batch, as arrays to be looked into."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from qkvbench.analysis import Layer
from qkvbench.backends.jax.attention.layer import Attention, Heads, Lengths, Stream
from qkvbench.backends.jax.attention.rope import turned
from qkvbench.backends.jax.attention.softmax import products_of
from qkvbench.backends.jax.models.build import Network
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.precision import exact
from qkvbench.variant import ROLES, ApplyRope, ApplyRotation, Path, Role, Scale, UpProject

# What is said of a layer besides its name: one array, or one for each role.
Told = dict[str, Any]


def inspected(network: Network, weights: Weights, *given: Any) -> dict[str, Told]:
    """Every layer of attention over its own stream, by its name, on these inputs.

    Attention across is not looked into: its rows and columns are of two sequences.
    """
    found: dict[str, Told] = {}

    def told(name: str, layer: Attention, own: Weights, x: Stream, lengths: Lengths | None) -> None:
        found[name] = _told(layer, own, x, lengths)

    network.hidden(weights, *given, told=told)
    return found


def layers_of(network: Network, told: Mapping[str, Told]) -> tuple[Layer, ...]:
    """The layers in the order of the network, of what `inspected` told."""
    names = [name.removesuffix(".o.weight") for name in network.shapes()]
    return tuple(_layer(name, told[name]) for name in names if name in told)


def _told(attention: Attention, weights: Weights, x: Stream, lengths: Lengths | None) -> Told:
    plan = attention.plan
    made, maps = attention.project(weights, x), attention.maps(weights)
    places = np.arange(x.shape[1])

    def turn(rows: Heads, *, back: bool) -> Heads:
        return turned(rows, attention.position, places, len(places), back=back)

    def make(path: Path) -> Heads:
        return attention.make(weights, path, made, maps, turn)

    rows = {role: make(_before_turn(plan.derivations[role])) for role in ROLES}
    q, k = (make(plan.derivations[role]) for role in ("q", "k"))
    k = jnp.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = products_of(q * q.shape[-1] ** -0.5, k).astype(q.dtype)
    shares = attention.scores.shares(weights, scores, places, places, len(places), lengths)
    seen = jnp.broadcast_to(
        attention.scores.seen(places, places, lengths), (len(x), 1, *scores.shape[2:])
    )[:, 0]
    read = jnp.ones_like(seen[:, :, 0])
    if lengths is not None:
        read = places < lengths[:, None]
    return {
        "weights": {role: exact(each) for role, each in _weights(attention, weights).items()},
        "projections": {role: exact(jnp.swapaxes(each, 1, 2)) for role, each in rows.items()},
        "scores": exact(scores),
        "attention_weights": shares,
        "mask": seen & read[:, :, None],
        "read": read,
    }


def _layer(name: str, told: Told) -> Layer:
    arrays = {part: told[part] for part in ("scores", "attention_weights", "mask")}
    read = np.array(told["read"])
    return Layer(
        name=name,
        weights={role: np.array(each) for role, each in told["weights"].items()},
        projections={role: np.array(each)[read] for role, each in told["projections"].items()},
        **{part: np.array(each) for part, each in arrays.items()},
    )


def _before_turn(path: Path) -> Path:
    """The way to a role without positions: K is turned and V is not, whatever they share."""
    return Path(path.root, tuple(op for op in path.ops if not isinstance(op, ApplyRope)))


def _weights(
    attention: Attention, weights: Weights
) -> dict[Role, Float[Array, "_heads head_dim d_model"]]:
    """The matrix of each role from the stream, learned maps and scales included."""
    plan, maps = attention.plan, attention.maps(weights)
    widths = {root.name: root.width for root in plan.roots}
    kind = weights["o.weight"].dtype
    matrices: dict[Role, Array] = {}
    for role in ROLES:
        path = plan.derivations[role]
        # Roots without a matrix are the stream itself, cut into heads.
        matrix = weights.get(f"{path.root}.weight")
        if matrix is None:
            matrix = jnp.eye(plan.geometry.d_model, dtype=kind)
        matrix = matrix.reshape(-1, widths[path.root], matrix.shape[-1])
        for op in path.ops:
            match op:
                case ApplyRotation(of, back):
                    turning = maps[of].astype(matrix.dtype)
                    matrix = (jnp.swapaxes(turning, 1, 2) if back else turning) @ matrix
                case UpProject(of):
                    matrix = maps[of].astype(matrix.dtype) @ matrix
                case Scale(of):
                    matrix = weights[f"{of}.scale"][:, None].astype(matrix.dtype) * matrix
                case _:
                    pass
        matrices[role] = matrix
    return matrices
