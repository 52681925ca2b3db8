"""Cross-entropy over a vocabulary: with all logits at once, or a chunk of rows at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from qkvbench.backends.jax.models.build import Network
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.precision import upcast

# Logits in a chunk: about what a processor's cache holds.
CHUNK_LOGITS = 2**20

Hidden = Float[Array, "places _features"]
Targets = Int[Array, " places"]
# False at padding, which keeps the number of different shapes small.
Valid = Bool[Array, " places"]


def mean_loss(
    network: Network,
    weights: Weights,
    hidden: Hidden,
    targets: Targets,
    valid: Valid,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean loss in nats at the valid positions, to be differentiated.

    With label smoothing ε the target class has probability 1 − ε, plus ε spread evenly over all
    classes (arXiv:1512.00567, section 7).
    """

    def losses(part: Hidden, target: Targets) -> Float[Array, " places"]:
        logits = upcast(network.head(weights, part))  # (places, classes)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        loss = -jnp.take_along_axis(log_probs, target[:, None], axis=-1)[:, 0]
        # Without smoothing, a class with probability 0 must not add 0 · inf.
        return loss + smoothing * (-log_probs.mean(-1) - loss) if smoothing else loss

    loss = _in_chunks(network, losses, hidden, targets)
    return jnp.where(valid, loss, 0).sum() / valid.sum()


def place_losses(
    network: Network, weights: Weights, hidden: Hidden, targets: Targets
) -> tuple[Float[Array, " places"], Int[Array, " places"], Int[Array, " places"]]:
    """The loss in nats, the most probable class and the rank of the target."""

    def evaluate(part: Hidden, target: Targets) -> tuple[Array, Array, Array]:
        logits = upcast(network.head(weights, part))  # (places, classes)
        own = jnp.take_along_axis(logits, target[:, None], axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - own[:, 0]
        return losses, logits.argmax(-1), (logits >= own).sum(-1) - 1

    return _in_chunks(network, evaluate, hidden, targets)


def _in_chunks(
    network: Network, function: Callable[..., Any], hidden: Hidden, targets: Targets
) -> Any:
    """The result of the function for all positions, computed in chunks if there are many logits.

    The backward pass recomputes the logits of a chunk: they are larger than the hidden states.
    """
    places = len(targets)
    rows = max(1, CHUNK_LOGITS // network.classes)
    # Two towers compare all rows with each other, so theirs are never split.
    if network.classes == 1 or rows >= places:
        return function(hidden, targets)
    chunk = jax.checkpoint(function)
    whole = places // rows * rows
    result = jax.lax.map(
        lambda part: chunk(*part),
        # Shapes are (chunks, rows, features) and (chunks, rows).
        (hidden[:whole].reshape(-1, rows, hidden.shape[-1]), targets[:whole].reshape(-1, rows)),
    )
    result = jax.tree.map(lambda each: each.reshape(whole), result)
    if whole == places:
        return result
    rest = chunk(hidden[whole:], targets[whole:])
    return jax.tree.map(lambda *both: jnp.concatenate(both), result, rest)
