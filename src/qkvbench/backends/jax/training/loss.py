"""Cross-entropy over a vocabulary, a few rows of logits at a time where they would be many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from qkvbench.backends.jax.models.build import Network
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.precision import exact

# Logits that are held at a time: about what a processor's cache holds.
HELD = 2**20

Hidden = Float[Array, "places _features"]
Targets = Int[Array, " places"]
# Which places count; the others are there so that batches have few different shapes.
Counted = Bool[Array, " places"]


def mean_loss(
    network: Network,
    weights: Weights,
    hidden: Hidden,
    targets: Targets,
    counted: Counted,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean loss in nats at the places that count, to be differentiated.

    With `smoothing` ε a label is no certainty: the right class has probability 1 − ε, and ε is
    spread evenly over all classes, the right one among them (arXiv:1512.00567, section 7).
    """

    def losses(part: Hidden, right: Targets) -> Float[Array, " places"]:
        likely = jax.nn.log_softmax(exact(network.head(weights, part)), axis=-1)
        found = -jnp.take_along_axis(likely, right[:, None], axis=-1)[:, 0]
        # Where nothing is smoothed, a class that is impossible costs nothing.
        return found + smoothing * (-likely.mean(-1) - found) if smoothing else found

    found = _in_rows(network, losses, hidden, targets)
    return jnp.where(counted, found, 0).sum() / counted.sum()


def place_losses(
    network: Network, weights: Weights, hidden: Hidden, targets: Targets
) -> tuple[Float[Array, " places"], Int[Array, " places"], Int[Array, " places"]]:
    """The loss in nats, the likeliest class and the right one's rank."""

    def said(part: Hidden, right: Targets) -> tuple[Array, Array, Array]:
        logits = exact(network.head(weights, part))
        own = jnp.take_along_axis(logits, right[:, None], axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - own[:, 0]
        return losses, logits.argmax(-1), (logits >= own).sum(-1) - 1

    return _in_rows(network, said, hidden, targets)


def _in_rows(
    network: Network, function: Callable[..., Any], hidden: Hidden, targets: Targets
) -> Any:
    """What the function makes of all places, of a few at a time where that would be many logits.

    The backward pass makes their logits again: they are larger than what they are made of.
    """
    places = len(targets)
    rows = max(1, HELD // network.classes)
    # The rows of two towers are compared with each other.
    if network.classes == 1 or rows >= places:
        return function(hidden, targets)
    some = jax.checkpoint(function)
    whole = places // rows * rows
    found = jax.lax.map(
        lambda part: some(*part),
        (hidden[:whole].reshape(-1, rows, hidden.shape[-1]), targets[:whole].reshape(-1, rows)),
    )
    found = jax.tree.map(lambda each: each.reshape(whole), found)
    if whole == places:
        return found
    rest = some(hidden[whole:], targets[whole:])
    return jax.tree.map(lambda *both: jnp.concatenate(both), found, rest)
