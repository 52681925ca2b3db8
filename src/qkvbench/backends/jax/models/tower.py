"""One of two inputs of a model: embedded, and read by bidirectional blocks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.models.block import Block, Key, Source, Told, block, nobody, normed
from qkvbench.backends.jax.models.embedding import Embedding
from qkvbench.backends.jax.models.weights import Shapes, Weights, named, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import Tower as TowerSpec
from qkvbench.variant import Geometry

Lengths = Int[Array, " batch"]
Stream = Float[Array, "batch time d_model"]


@dataclass(frozen=True)
class Tower:
    """An input to the normed stream after the last block."""

    embedding: Embedding
    blocks: tuple[Block, ...]

    def shapes(self) -> Shapes:
        """The names of its weights and their shapes."""
        shapes = named("embedding", self.embedding.shapes())
        for number, each in enumerate(self.blocks):
            shapes |= named(f"blocks.{number}", each.shapes())
        d_model = self.embedding.d_model
        return shapes | {"norm.weight": (d_model,), "norm.bias": (d_model,)}

    def __call__(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None = None,
        source: Source | None = None,
        key: Key = None,
        told: Told = nobody,
    ) -> Stream:
        """The normed stream; nothing attends to what follows an item's first `lengths` positions.

        `told` hears what the attention of each block is given.
        """
        return normed(
            part(weights, "norm"), self.stream(weights, inputs, lengths, source, key, told)
        )

    def stream(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None,
        source: Source | None,
        key: Key,
        told: Told,
    ) -> Float[Array, "batch _positions d_model"]:
        """The stream after the last block, which may begin with a class token that is read."""
        x = self.embedding(part(weights, "embedding"), inputs)
        seen = None if lengths is None else lengths + self.embedding.class_tokens
        for number, each in enumerate(self.blocks):
            own = part(weights, f"blocks.{number}")
            drawn = None if key is None else jax.random.fold_in(key, number)
            x = each(own, x, seen, source, drawn, below(f"blocks.{number}", told))
        return x


def tower(
    spec: TowerSpec,
    geometry: Geometry,
    *,
    causal: bool = False,
    class_tokens: int = 0,
    dropout: float = 0.0,
    again: bool = False,
) -> Tower:
    """What reads such an input."""
    blocks = tuple(
        block(each, geometry, spec.position, causal=causal, dropout=dropout, again=again)
        for each in spec.blocks
    )
    embedding = Embedding(spec.inputs, spec.position, geometry.d_model, class_tokens)
    return Tower(embedding, blocks)


def below(name: str, told: Told) -> Told:
    """Who is told of a part's layers by their names in the part."""
    return lambda own, *heard: told(f"{name}.{own}", *heard)


def averaged(x: Stream, lengths: Lengths | None) -> Float[Array, "batch one d_model"]:
    """The mean over the positions that are read."""
    if lengths is None:
        return x.mean(axis=1, keepdims=True)
    read = jnp.arange(x.shape[1]) < lengths[:, None]
    total = jnp.where(read[:, :, None], upcast(x), 0).sum(axis=1, keepdims=True)
    return (total / lengths[:, None, None]).astype(x.dtype)
