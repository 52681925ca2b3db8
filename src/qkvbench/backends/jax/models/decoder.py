"""The causal stack: tokens to the logits of the next one, whole or step by step over a cache.

An encoder-decoder is a causal stack that also reads a source.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Num

from qkvbench.backends.jax.attention.layer import Heads, Owner
from qkvbench.backends.jax.cache.kv_cache import Cache
from qkvbench.backends.jax.models.block import Key, OnAttention, Source, ignore
from qkvbench.backends.jax.models.tower import Tower, prefixed
from qkvbench.backends.jax.models.weights import Parameters, Weights, part
from qkvbench.backends.jax.training.precision import OUTPUT, TABLE
from qkvbench.variant import ROLES, Role, roots_below

Tokenized = Int[Array, "batch time"]
Counts = Int[Array, " batch"]


@dataclass(frozen=True)
class Decoder:
    """A decoder, and the tower of its source if it has one."""

    own: Tower
    source: Tower | None
    classes: int
    longest: int | None
    parameters: Parameters

    def hidden(
        self,
        weights: Weights,
        inputs: Tokenized,
        lengths: Counts | None = None,
        second: Num[Array, "batch second_time *second_features"] | None = None,
        second_lengths: Counts | None = None,
        key: Key = None,
        on_attention: OnAttention = ignore,
    ) -> Float[Array, "batch time d_model"]:
        """The normed stream after the last block; the source, if there is one, is `second`.

        What follows the first `lengths` tokens of a row is hidden by causality already.
        """
        own, other = (None, None) if key is None else jax.random.split(key)
        source = self._read(weights, second, second_lengths, other, on_attention)
        return self.own(weights, inputs, None, source, own, on_attention)

    def head(
        self, weights: Weights, x: Float[Array, "*places d_model"]
    ) -> Float[Array, "*places vocabulary"]:
        """Logits of the next token."""
        matrix = self.matrix(weights)
        return x.astype(matrix.dtype) @ matrix.T

    def matrix(self, weights: Weights) -> Float[Array, "vocabulary d_model"]:
        """The output matrix; the token table if they are tied."""
        return weights[OUTPUT] if OUTPUT in weights else weights[TABLE]

    def new_cache(self, weights: Weights, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` sequences of at most `capacity` tokens.

        Its rows are of the type of the products.
        """
        if self.longest is not None and capacity > self.longest:
            raise ValueError(
                f"This model reads at most {self.longest} tokens, fewer than {capacity}."
            )
        layers = tuple(
            block.new_cache(part(weights, f"blocks.{number}"), batch, capacity)
            for number, block in enumerate(self.own.blocks)
        )
        return Cache(layers, jnp.zeros((), jnp.int32), capacity)

    def read_source(
        self,
        weights: Weights,
        second: Num[Array, "items second_time *second_features"],
        second_lengths: Int[Array, " items"] | None,
        cache: Cache,
    ) -> Cache:
        """The cache with what its sequences need of their sources, before anything else.

        There may be several sequences for each of the `items`, next to each other.
        """
        source = self._read(weights, second, second_lengths, None, ignore)
        if source is None:
            raise ValueError("This decoder reads no source.")
        layers = list(cache.layers)
        for number, block in enumerate(self.own.blocks):
            if block.cross:
                own = part(weights, f"blocks.{number}.cross")
                kept = block.cross.cache_source(own, source.stream, source.lengths)
                layers[number] = replace(layers[number], cross=kept)
        return replace(cache, layers=tuple(layers))

    def prefill(
        self,
        weights: Weights,
        tokens: Tokenized,
        cache: Cache,
        padding: Counts | None = None,
    ) -> tuple[Float[Array, "batch vocabulary"], Cache]:
        """Read whole prompts into an empty cache; the logits after the last token of each.

        `padding` counts the tokens to ignore on the left of each row.
        """
        batch, time = tokens.shape
        if time > cache.capacity:
            raise ValueError(
                f"The cache holds {cache.capacity} tokens; {time} do not fit. Make it with a "
                "larger capacity."
            )
        count = jnp.asarray(time, jnp.int32)
        if padding is not None:
            # Shifted left, padding comes after the last token, and causality hides it:
            # no mask, and a slot of the cache is a position.
            tokens = _shifted(tokens, padding)
            count = (time - padding).astype(jnp.int32)
        x = self.own.embedding(part(weights, "embedding"), tokens)
        layers, lent = list(cache.layers), dict[tuple[int, Role], Heads]()
        for number, block in enumerate(self.own.blocks):
            own = self.own.block_weights(weights, number)
            read = roots_below(block.lenders, number, lent)
            x, layers[number], lends = block.read(own, x, layers[number], count, read)
            lent |= {(number, role): rows for role, rows in lends.items()}
        last = x[jnp.arange(batch), count - 1]
        logits = self.head(weights, self.own.normalize(weights, last))
        return logits, replace(cache, layers=tuple(layers), count=count)

    def step(
        self, weights: Weights, tokens: Counts, cache: Cache
    ) -> tuple[Float[Array, "batch vocabulary"], Cache]:
        """Read one token of each sequence; the logits after it."""
        end = cache.capacity
        x = self.own.embedding.at(part(weights, "embedding"), tokens, cache.count, end)
        layers, lent = list(cache.layers), dict[tuple[int, Role], Heads]()
        for number, block in enumerate(self.own.blocks):
            own, read = self.own.block_weights(weights, number), block.row_lenders
            below: dict[Role, Owner] = {}
            for role in ROLES:
                if distance := block.layers_below(role):
                    at = number - distance
                    below[role] = Owner(part(weights, f"blocks.{at}.attention"), layers[at])
            given = own, x, layers[number], cache.count, end, below
            x, layers[number], lends = block.step(*given, roots_below(read, number, lent))
            lent |= {(number, role): rows for role, rows in lends.items()}
        logits = self.head(weights, self.own.normalize(weights, x[:, 0]))
        return logits, replace(cache, layers=tuple(layers), count=cache.count + 1)

    def _read(
        self,
        weights: Weights,
        second: Array | None,
        lengths: Int[Array, " _items"] | None,
        key: Key,
        on_attention: OnAttention,
    ) -> Source | None:
        if self.source is None:
            return None
        if second is None:
            raise ValueError("This decoder reads a source, and none was given.")
        own, callback = part(weights, "source"), prefixed("source", on_attention)
        return Source(self.source(own, second, lengths, None, key, callback), lengths)


def _shifted(rows: Tokenized, counts: Counts) -> Tokenized:
    """Each row moved left by its count, around the end."""
    index = (jnp.arange(rows.shape[1]) + counts[:, None]) % rows.shape[1]
    return jnp.take_along_axis(rows, index, axis=1)
