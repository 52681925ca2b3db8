"""One of two inputs of a model: embedded, and read by bidirectional blocks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import Heads
from qkvbench.backends.jax.models.block import Block, Key, OnAttention, Source, block, ignore
from qkvbench.backends.jax.models.embedding import Embedding
from qkvbench.backends.jax.models.parts import normalize
from qkvbench.backends.jax.models.weights import Weights, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import AnyNorm, LayerPlans, lent_roles
from qkvbench.model import Tower as TowerSpec
from qkvbench.variant import Role, roots_below

Lengths = Int[Array, " batch"]
Stream = Float[Array, "batch time d_model"]


@dataclass(frozen=True)
class Tower:
    """An input to the normed stream after the last block."""

    embedding: Embedding
    blocks: tuple[Block, ...]
    norm: AnyNorm

    def __call__(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None = None,
        source: Source | None = None,
        key: Key = None,
        on_attention: OnAttention = ignore,
    ) -> Stream:
        """The normed stream; nothing attends to what follows an item's first `lengths` positions.

        `on_attention` is called with the inputs of each attention layer.
        """
        x = self.stream(weights, inputs, lengths, source, key, on_attention)
        return self.normalize(weights, x)

    def block_weights(self, weights: Weights, number: int) -> Weights:
        """The weights of a block; a shared feed-forward is stored with the first one."""
        own = part(weights, f"blocks.{number}")
        if number and self.blocks[number].spec.shared_feed_forward:
            shared = part(weights, "blocks.0.feed_forward")
            own = {**own, **{f"feed_forward.{name}": each for name, each in shared.items()}}
        return own

    def normalize(
        self, weights: Weights, x: Float[Array, "*positions d_model"]
    ) -> Float[Array, "*positions d_model"]:
        """The norm after the last block."""
        return normalize(self.norm, part(weights, "norm"), x)

    def stream(
        self,
        weights: Weights,
        inputs: Num[Array, "batch time *features"],
        lengths: Lengths | None,
        source: Source | None,
        key: Key,
        on_attention: OnAttention,
    ) -> Float[Array, "batch _positions d_model"]:
        """The stream after the last block, which may begin with a class token that is read."""
        x = self.embedding(part(weights, "embedding"), inputs)
        seen = None if lengths is None else lengths + self.embedding.class_tokens
        lent: dict[tuple[int, Role], Heads] = {}
        for number, each in enumerate(self.blocks):
            own = self.block_weights(weights, number)
            drawn = None if key is None else jax.random.fold_in(key, number)
            callback = prefixed(f"blocks.{number}", on_attention)
            read = roots_below(each.lenders, number, lent)
            x, lends = each(own, x, seen, source, drawn, callback, read)
            lent |= {(number, role): rows for role, rows in lends.items()}
        return x


def tower(
    spec: TowerSpec,
    layers: tuple[LayerPlans, ...],
    d_model: int,
    *,
    class_tokens: int = 0,
    dropout: float = 0.0,
    again: bool = False,
) -> Tower:
    """The tower of an input, with attention by these plans."""
    blocks = tuple(
        block(each, plans, dropout=dropout, again=again, lends=lends)
        for each, plans, lends in zip(spec.blocks, layers, lent_roles(layers), strict=True)
    )
    embedding = Embedding(spec.inputs, spec.position, d_model, class_tokens)
    return Tower(embedding, blocks, spec.final_norm)


def prefixed(name: str, on_attention: OnAttention) -> OnAttention:
    """The callback, with a prefix before the layer's name."""
    return lambda own, *inputs: on_attention(f"{name}.{own}", *inputs)


def averaged(x: Stream, lengths: Lengths | None) -> Float[Array, "batch one d_model"]:
    """The mean over the positions that are read."""
    if lengths is None:
        return x.mean(axis=1, keepdims=True)
    read = jnp.arange(x.shape[1]) < lengths[:, None]
    total = jnp.where(read[:, :, None], upcast(x), 0).sum(axis=1, keepdims=True)
    return (total / lengths[:, None, None]).astype(x.dtype)
