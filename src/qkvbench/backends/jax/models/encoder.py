"""The bidirectional stack: tokens or vectors to one prediction per position, or one in all."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import linear
from qkvbench.backends.jax.models.block import Key, OnAttention, ignore
from qkvbench.backends.jax.models.tower import Tower, averaged
from qkvbench.backends.jax.models.weights import Parameters, Weights, part
from qkvbench.model import Encoder as EncoderSpec

Lengths = Int[Array, " batch"]


@dataclass(frozen=True)
class Encoder:
    """An encoder-only Transformer, as its spec says."""

    spec: EncoderSpec
    own: Tower
    parameters: Parameters

    def hidden(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None = None,
        second: Array | None = None,
        second_lengths: Array | None = None,
        key: Key = None,
        on_attention: OnAttention = ignore,
    ) -> Float[Array, "batch places _features"]:
        """The input of the head: the normed stream at the predicting positions.

        That is at each position, at the class token, or the mean over the positions that are read;
        for "which position", the score of each. `lengths` counts the positions that are read:
        the first ones of each item. Nothing attends to the others.
        """
        x = self.own.stream(weights, inputs, lengths, None, key, on_attention)
        if self.spec.pooling == "class token":
            return self.own.normalize(weights, x[:, :1])
        x = self.own.normalize(weights, x)
        match self.spec.predicts:
            case "each position":
                return x
            case "the whole":
                return averaged(x, lengths)
            case "which position":
                scores = linear(part(weights, "output"), x)
                return _among(jnp.swapaxes(scores, 1, 2), lengths)

    @property
    def classes(self) -> int:
        """The number of classes of a prediction."""
        return self.spec.classes

    def head(
        self, weights: Weights, x: Float[Array, "*places _features"]
    ) -> Float[Array, "*places classes"]:
        """Logits of the classes."""
        return x if self.spec.predicts == "which position" else linear(part(weights, "output"), x)


def _among(
    scores: Float[Array, "batch one time"], lengths: Lengths | None
) -> Float[Array, "batch one time"]:
    """The scores of the positions that are read; the others are never named."""
    if lengths is None:
        return scores
    places = jnp.arange(scores.shape[-1])
    return jnp.where(places < lengths[:, None, None], scores, -jnp.inf)
