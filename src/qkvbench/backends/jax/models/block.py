"""One layer of a stack: attention and feed-forward, each on the normed stream and added to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.layer import Attention, attention, linear
from qkvbench.backends.jax.cache.kv_cache import Count, LayerCache
from qkvbench.backends.jax.models.weights import Shapes, Weights, named, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import Block as BlockSpec
from qkvbench.model import Learned, NoPosition, Position, Sinusoidal
from qkvbench.variant import Geometry

Stream = Float[Array, "batch time d_model"]
Lengths = Int[Array, " batch"]
# The key from which a part draws its dropout; None where there is none.
Key = Array | None
# Hears what a layer of attention is given: its name in the block, itself, its weights, the stream
# and how much of that is read.
Told = Callable[[str, Attention, Weights, Stream, Lengths | None], None]


class Source(NamedTuple):
    """What is attended to across: a stream, and how much of each of its items is read."""

    stream: Float[Array, "_batch source_time d_model"]
    lengths: Int[Array, " _batch"] | None


def nobody(*_: object) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Block:
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on each addition.

    Where it reads a source, x + cross(norm(x), source) comes between. Where it computes `again`,
    the backward pass makes everything between a block's input and its output once more.
    """

    spec: BlockSpec
    geometry: Geometry
    attention: Attention | None
    cross: Attention | None
    dropout: float
    again: bool

    def shapes(self) -> Shapes:
        """The names of its weights and their shapes."""
        d_model = self.geometry.d_model
        norm = {"weight": (d_model,), "bias": (d_model,)}
        shapes: Shapes = {}
        if self.attention:
            shapes |= named("attention_norm", norm) | named("attention", self.attention.shapes())
        if self.cross:
            shapes |= named("cross_norm", norm) | named("cross", self.cross.shapes())
        if feed_forward := self.spec.feed_forward:
            width = feed_forward.width
            shapes |= named("feed_forward_norm", norm)
            shapes |= {"feed_forward.up.weight": (width, d_model), "feed_forward.up.bias": (width,)}
            shapes |= {"feed_forward.down.weight": (d_model, width)}
            shapes |= {"feed_forward.down.bias": (d_model,)}
        return shapes

    def __call__(
        self,
        weights: Weights,
        x: Stream,
        lengths: Lengths | None = None,
        source: Source | None = None,
        key: Key = None,
        told: Told = nobody,
    ) -> Stream:
        """The stream after this layer, over a whole sequence."""
        if not self.again:
            return self._whole(weights, x, lengths, source, key, told)

        def whole(*given: Any) -> Stream:
            weights, x, lengths, source, key = given
            return self._whole(weights, x, lengths, source, key, told)

        return jax.checkpoint(whole)(weights, x, lengths, source, key)

    def read(
        self, weights: Weights, x: Stream, layer: LayerCache, count: Count
    ) -> tuple[Stream, LayerCache]:
        """The stream after this layer, over whole prompts, of which an empty cache is filled."""
        if self.attention:
            rows = self._normed(weights, "attention_norm", x)
            added, layer = self.attention.read(part(weights, "attention"), rows, layer, count)
            x = x + added
        return self._fed_forward(weights, self._looked_up(weights, x, layer), None), layer

    def step(
        self, weights: Weights, x: Stream, layer: LayerCache, count: Count, capacity: int
    ) -> tuple[Stream, LayerCache]:
        """The stream after this layer, for one new token of each sequence."""
        if self.attention:
            rows = self._normed(weights, "attention_norm", x)
            own = part(weights, "attention")
            added, layer = self.attention.step(own, rows, layer, count, capacity)
            x = x + added
        return self._fed_forward(weights, self._looked_up(weights, x, layer), None), layer

    def new_cache(self, weights: Weights, batch: int, capacity: int) -> LayerCache:
        """An empty cache for this layer."""
        if self.attention is None:
            return LayerCache({}, {})
        return self.attention.new_cache(part(weights, "attention"), batch, capacity)

    def _whole(
        self,
        weights: Weights,
        x: Stream,
        lengths: Lengths | None,
        source: Source | None,
        key: Key,
        told: Told,
    ) -> Stream:
        if self.attention:
            rows, own = self._normed(weights, "attention_norm", x), part(weights, "attention")
            told("attention", self.attention, own, rows, lengths)
            x = x + self._dropped(self.attention(own, rows, lengths), key, 0)
        if self.cross and source:
            rows, own = self._normed(weights, "cross_norm", x), part(weights, "cross")
            across = self.cross(own, rows, source.lengths, source.stream)
            x = x + self._dropped(across, key, 1)
        return self._fed_forward(weights, x, key)

    def _looked_up(self, weights: Weights, x: Stream, layer: LayerCache) -> Stream:
        if self.cross is None or layer.cross is None:
            return x
        rows = self._normed(weights, "cross_norm", x)
        return x + self.cross.attend_to_cached_source(part(weights, "cross"), rows, layer.cross)

    def _fed_forward(self, weights: Weights, x: Stream, key: Key) -> Stream:
        if self.spec.feed_forward is None:
            return x
        rows = self._normed(weights, "feed_forward_norm", x)
        hidden = linear(part(weights, "feed_forward.up"), rows)
        made = linear(part(weights, "feed_forward.down"), jax.nn.gelu(hidden, approximate=False))
        return x + self._dropped(made, key, 2)

    def _normed(self, weights: Weights, name: str, x: Stream) -> Stream:
        return normed(part(weights, name), x, self.spec.norm.eps)

    def _dropped(self, x: Stream, key: Key, place: int) -> Stream:
        if key is None or not self.dropout:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)


def block(
    spec: BlockSpec,
    geometry: Geometry,
    position: Position,
    *,
    causal: bool,
    dropout: float = 0.0,
    again: bool = False,
) -> Block:
    """The block that `spec` describes."""
    added = isinstance(position, Learned | Sinusoidal)
    own = spec.attention and attention(
        spec.attention.variant,
        geometry,
        NoPosition() if added else position,
        causal=causal,
        window=spec.attention.window,
    )
    cross = spec.cross and attention(spec.cross.variant, geometry, is_cross=True)
    return Block(spec, geometry, own, cross, dropout, again)


def normed(
    weights: Weights, x: Float[Array, "*places d_model"], eps: float = 1e-5
) -> Float[Array, "*places d_model"]:
    """Mean 0 and variance 1 at each place, scaled and shifted, in fp32 or better."""
    wide = upcast(x)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * weights["weight"] + weights["bias"]
