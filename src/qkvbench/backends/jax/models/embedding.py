"""Input embedding: the stream before the first block, from tokens or vectors and positions."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import linear
from qkvbench.backends.jax.attention.rope import Positions, looked_up, sinusoids
from qkvbench.backends.jax.models.weights import Weights, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import Learned, Position, Sinusoidal, Tokens, Vectors


@dataclass(frozen=True)
class Embedding:
    """Embeds inputs; adds position embeddings if the scheme has them."""

    inputs: Tokens | Vectors
    position: Position
    d_model: int
    class_tokens: int = 0

    def __call__(
        self, weights: Weights, inputs: Num[Array, "batch time *features"]
    ) -> Float[Array, "batch positions d_model"]:
        """The stream of whole sequences from position 0, with the class tokens in front."""
        time = inputs.shape[1]
        if isinstance(self.position, Learned) and time > self.position.length:
            raise ValueError(
                f"{time} positions do not fit a model with {self.position.length} learned ones."
            )
        # x: (batch, time, d_model), from tokens (batch, time) or vectors (batch, time, features)
        x = (
            weights["table"][inputs]
            if isinstance(self.inputs, Tokens)
            # The stream is in fp32, whatever the product is in.
            else upcast(linear(part(weights, "vectors"), inputs))
        )
        x = self._add_positions(weights, x, np.arange(time), time)
        if not self.class_tokens:
            return x
        # A class token gets no position: its own vector tells it from the inputs.
        first = weights["class_token"].astype(x.dtype)[None]
        first = jnp.repeat(first, len(x), axis=0)  # (batch, class_tokens, d_model)
        return jnp.concatenate([first, x], axis=1)

    def at(
        self, weights: Weights, tokens: Int[Array, " batch"], count: Int[Array, "..."], end: int
    ) -> Float[Array, "batch one d_model"]:
        """The stream of one token per sequence at position `count`, which is less than `end`."""
        x = weights["table"][tokens][:, None]  # (batch, 1, d_model)
        return self._add_positions(weights, x, count[..., None], end)

    def _add_positions(
        self, weights: Weights, x: Float[Array, "batch time d_model"], at: Positions, end: int
    ) -> Float[Array, "batch time d_model"]:
        match self.position:
            case Learned():
                added = weights["positions"].at[jnp.asarray(at)].get(mode="clip")
            case Sinusoidal(base):
                added = looked_up(sinusoids(end, self.d_model, base), at, x).astype(x.dtype)
            case _:
                return x
        return x + added
