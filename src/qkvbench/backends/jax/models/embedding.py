"""The stream before the first block: a vector for each token or input vector, and its position."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import linear
from qkvbench.backends.jax.attention.rope import Positions, looked_up, sinusoids
from qkvbench.backends.jax.models.weights import Weights, part
from qkvbench.model import Learned, Position, Sinusoidal, Tokens, Vectors


@dataclass(frozen=True)
class Embedding:
    """Inputs mapped to the stream; positions added where the scheme adds them."""

    inputs: Tokens | Vectors
    position: Position
    d_model: int
    class_tokens: int = 0

    def __call__(
        self, weights: Weights, inputs: Num[Array, "batch time *features"]
    ) -> Float[Array, "batch positions d_model"]:
        """The stream of whole sequences, from position 0; before them the class token."""
        time = inputs.shape[1]
        if isinstance(self.position, Learned) and time > self.position.length:
            raise ValueError(
                f"{time} positions do not fit a model with {self.position.length} learned ones."
            )
        x = (
            weights["table"][inputs]
            if isinstance(self.inputs, Tokens)
            else linear(part(weights, "vectors"), inputs)
        )
        x = self._placed(weights, x, np.arange(time), time)
        if not self.class_tokens:
            return x
        # It gets no position: it is no input, and its own vector tells it from them.
        first = weights["class_token"].astype(x.dtype)[None]
        return jnp.concatenate([jnp.repeat(first, len(x), axis=0), x], axis=1)

    def at(
        self, weights: Weights, tokens: Int[Array, " batch"], count: Int[Array, "..."], end: int
    ) -> Float[Array, "batch one d_model"]:
        """The stream of one token of each, which has `count` before it, all before `end`."""
        return self._placed(weights, weights["table"][tokens][:, None], count[..., None], end)

    def _placed(
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
