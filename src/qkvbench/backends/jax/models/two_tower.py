"""Two towers: each input becomes a vector, and those that belong together are to be alike."""

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
from qkvbench.backends.jax.training.precision import exact

Lengths = Int[Array, " batch"]
# A likeness is never made sharper than this. arXiv:2103.00020, section 2.5.
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class TwoTowers:
    """Two towers and what compares their vectors; each item is on_attention from the others of a batch."""

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
        """The vector of each item's own input and that of its second, of length 1."""
        if second is None:
            raise ValueError("These towers read two inputs, and no second was given.")
        read = ((inputs, lengths), (second, second_lengths))
        vectors: list[Array] = []
        for number, (name, given) in enumerate(zip(self.towers, read, strict=True)):
            own = f"towers.{name}"
            drawn = None if key is None else jax.random.fold_in(key, number)
            x = self.towers[name](
                part(weights, own), *given, key=drawn, on_attention=prefixed(own, on_attention)
            )
            vectors.append(linear(part(weights, f"outputs.{name}"), averaged(x, given[1])))
        both = exact(jnp.concatenate(vectors, axis=1))
        size = jnp.linalg.norm(both, axis=-1, keepdims=True)
        return both / jnp.maximum(size, 1e-12)

    @property
    def classes(self) -> int:
        """One: all rows go into `head` together, since each is compared with all."""
        return 1

    def head(
        self, weights: Weights, x: Float[Array, "places width"]
    ) -> Float[Array, "places batch"]:
        """How alike each place's vector and all those of the other kind are, sharpened."""
        kind = next(weights[f"outputs.{name}.weight"].dtype for name in self.towers)
        first, second = x.astype(kind)[0::2], x.astype(kind)[1::2]
        sharpness = jnp.minimum(weights["logit_scale"], math.log(MAX_LOGIT_SCALE))
        alike = exact(first @ second.T) * jnp.exp(exact(sharpness))
        return jnp.stack([alike, alike.T], axis=1).reshape(len(x), -1)
