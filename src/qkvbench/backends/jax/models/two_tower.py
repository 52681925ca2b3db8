"""Two towers as in CLIP: each embeds one input; the vectors of a pair are trained to be similar."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import linear
from qkvbench.backends.jax.models.block import Key, OnAttention, ignore
from qkvbench.backends.jax.models.tower import Tower, averaged, prefixed
from qkvbench.backends.jax.models.weights import Parameters, Weights, part
from qkvbench.backends.jax.training.precision import upcast

Lengths = Int[Array, " batch"]
# The largest factor of a cosine similarity. arXiv:2103.00020, section 2.5.
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class TwoTowers:
    """Two towers and their contrastive head: classifies which item of the batch is the pair."""

    towers: dict[str, Tower]
    parameters: Parameters

    def hidden(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None = None,
        second: Num[Array, "batch second_time *second_features"] | None = None,
        second_lengths: Lengths | None = None,
        key: Key = None,
        on_attention: OnAttention = ignore,
    ) -> Float[Array, "batch two width"]:
        """The unit vectors of each item's two inputs."""
        if second is None:
            raise ValueError("These towers read two inputs, and the second was not given.")
        pairs = ((inputs, lengths), (second, second_lengths))
        vectors: list[Array] = []
        for number, (name, pair) in enumerate(zip(self.towers, pairs, strict=True)):
            prefix = f"towers.{name}"
            tower_key = None if key is None else jax.random.fold_in(key, number)
            x = self.towers[name](
                part(weights, prefix),
                *pair,
                key=tower_key,
                on_attention=prefixed(prefix, on_attention),
            )
            vectors.append(linear(part(weights, f"outputs.{name}"), averaged(x, pair[1])))
        both = upcast(jnp.concatenate(vectors, axis=1))  # (batch, 2, width)
        norm = jnp.linalg.norm(both, axis=-1, keepdims=True)
        return both / jnp.maximum(norm, 1e-12)

    @property
    def classes(self) -> int:
        """One: `head` compares all rows with each other and cannot be computed in chunks."""
        return 1

    def head(
        self, weights: Weights, x: Float[Array, "places width"]
    ) -> Float[Array, "places batch"]:
        """Scaled cosine similarity of each vector to all vectors of the other tower."""
        dtype = next(weights[f"outputs.{name}.weight"].dtype for name in self.towers)
        first, second = x.astype(dtype)[0::2], x.astype(dtype)[1::2]  # (batch, width) each
        scale = jnp.minimum(weights["logit_scale"], math.log(MAX_LOGIT_SCALE))
        logits = upcast(first @ second.T) * jnp.exp(upcast(scale))  # (batch, batch)
        return jnp.stack([logits, logits.T], axis=1).reshape(len(x), -1)  # (batch · 2, batch)
