"""One layer of a stack: attention and feed-forward, each on the normed stream and added to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.layer import Attention, Heads, Owner
from qkvbench.backends.jax.cache.kv_cache import Count, LayerCache
from qkvbench.backends.jax.models.parts import feed_forward, normalize
from qkvbench.backends.jax.models.weights import Weights, part
from qkvbench.model import Block as BlockSpec
from qkvbench.model import LayerPlans, LentRoles
from qkvbench.variant import Derivation, Lender, Role

Stream = Float[Array, "batch time d_model"]
Lengths = Int[Array, " batch"]
# The key of a part's dropout; None without dropout.
Key = Array | None
# A callback with the inputs of an attention layer: its name in the block, itself, its weights, the
# stream, the lengths without padding and the roots of layers below.
OnAttention = Callable[
    [str, Attention, Weights, Stream, Lengths | None, Mapping[Derivation, Heads]], None
]

Part = Literal["attention", "cross", "feed_forward"]
# Each part has a dropout of its own.
PLACES: dict[Part, int] = {"attention": 0, "cross": 1, "feed_forward": 2}


class Source(NamedTuple):
    """The input of cross-attention: a stream, and the length of each item without padding."""

    stream: Float[Array, "_batch source_time d_model"]
    lengths: Int[Array, " _batch"] | None


def ignore(*_: object) -> None:
    """No-op."""


@dataclass(frozen=True)
class Block:
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on each addition.

    With cross-attention, x + cross(norm(x), source) comes between. ``again``: activation
    checkpointing, the backward pass recomputes everything between the block's input and output.
    ``lends``: K and V if blocks above it read them.
    """

    spec: BlockSpec
    attention: Attention | None
    cross: Attention | None
    dropout: float
    again: bool
    lends: LentRoles

    @property
    def lenders(self) -> tuple[Lender, ...]:
        """The layers below that it reads."""
        return self.attention.plan.lenders if self.attention else ()

    @property
    def row_lenders(self) -> tuple[Lender, ...]:
        """Those whose K or V of a new token it reads."""
        return self.attention.plan.row_lenders if self.attention else ()

    def layers_below(self, role: Role) -> int:
        """How far below the layer is whose K or V it reads; 0 if it makes it."""
        return self.attention.plan.layers_below(role) if self.attention else 0

    def __call__(
        self,
        weights: Weights,
        x: Stream,
        lengths: Lengths | None = None,
        source: Source | None = None,
        key: Key = None,
        on_attention: OnAttention = ignore,
        lent: Mapping[Derivation, Heads] = MappingProxyType({}),
    ) -> tuple[Stream, dict[Role, Heads]]:
        """The stream after this layer, over a whole sequence, and what layers above read of it.

        `lent` are the roots of layers below.
        """
        if not self.again:
            return self._whole(weights, x, lengths, source, key, lent, on_attention)

        def whole(rows: list[Heads], *given: Any) -> tuple[Stream, dict[Role, Heads]]:
            read = dict(zip(lent, rows, strict=True))
            return self._whole(*given, lent=read, on_attention=on_attention)

        return jax.checkpoint(whole)([*lent.values()], weights, x, lengths, source, key)

    def read(
        self,
        weights: Weights,
        x: Stream,
        layer: LayerCache,
        count: Count,
        lent: Mapping[Derivation, Heads],
    ) -> tuple[Stream, LayerCache, dict[Role, Heads]]:
        """The stream after this layer, over whole prompts, of which an empty cache is filled.

        `lent` and the last result as in a call.
        """
        made = dict(lent)
        lends: dict[Role, Heads] = {}
        rows = x
        if self.attention:
            rows, own = self._normed(weights, "attention", x), part(weights, "attention")
            added, layer = self.attention.read(own, rows, layer, count, made)
            x = self._add(weights, "attention", x, added)
            lends = self.attention.lent(self.lends.whole, made)
        x = self._add_feed_forward(weights, self._add_cross(weights, x, layer), rows)
        return x, layer, lends

    def step(
        self,
        weights: Weights,
        x: Stream,
        layer: LayerCache,
        count: Count,
        capacity: int,
        below: Mapping[Role, Owner],
        lent: Mapping[Derivation, Heads],
    ) -> tuple[Stream, LayerCache, dict[Role, Heads]]:
        """The stream after this layer, for one new token of each sequence.

        Over the rows of layers `below` if it reads K or V from there. `lent` and the last result as
        in a call, of the token alone.
        """
        made, step = dict(lent), self.lends.step
        lends: dict[Role, Heads] = {}
        rows = x
        if self.attention:
            rows = self._normed(weights, "attention", x)
            own = part(weights, "attention")
            added, layer = self.attention.step(own, rows, layer, count, capacity, below, made, step)
            x = self._add(weights, "attention", x, added)
            lends = self.attention.lent(step, made)
        x = self._add_feed_forward(weights, self._add_cross(weights, x, layer), rows)
        return x, layer, lends

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
        lent: Mapping[Derivation, Heads],
        on_attention: OnAttention,
    ) -> tuple[Stream, dict[Role, Heads]]:
        made = dict(lent)
        lends: dict[Role, Heads] = {}
        rows = x
        if self.attention:
            rows, own = self._normed(weights, "attention", x), part(weights, "attention")
            on_attention("attention", self.attention, own, rows, lengths, lent)
            x = self._add(
                weights, "attention", x, self.attention(own, rows, lengths, made=made), key
            )
            lends = self.attention.lent(self.lends.whole, made)
        if self.cross and source:
            across, own = self._normed(weights, "cross", x), part(weights, "cross")
            across = self.cross(own, across, source.lengths, source.stream)
            x = self._add(weights, "cross", x, across, key)
        return self._add_feed_forward(weights, x, rows, key), lends

    def _add_cross(self, weights: Weights, x: Stream, layer: LayerCache) -> Stream:
        if self.cross is None or layer.cross is None:
            return x
        rows = self._normed(weights, "cross", x)
        made = self.cross.attend_to_cached_source(part(weights, "cross"), rows, layer.cross)
        return self._add(weights, "cross", x, made)

    def _add_feed_forward(
        self, weights: Weights, x: Stream, rows: Stream, key: Key = None
    ) -> Stream:
        """`rows` is what attention read, which a parallel feed-forward reads, too."""
        if self.spec.feed_forward is None:
            return x
        if self.spec.residual != "parallel" or self.attention is None:
            rows = self._normed(weights, "feed_forward", x)
        made = feed_forward(self.spec.feed_forward, part(weights, "feed_forward"), rows)
        return self._add(weights, "feed_forward", x, made, key)

    def _normed(self, weights: Weights, name: str, x: Stream) -> Stream:
        """The input of a part."""
        if self.spec.norm_place not in ("input", "both"):
            return x
        return self._norm(weights, f"{name}_norm", x)

    def _add(
        self, weights: Weights, name: Part, x: Stream, made: Stream, key: Key = None
    ) -> Stream:
        """The stream with what a part made."""
        if self.spec.norm_place in ("output", "both"):
            made = self._norm(weights, f"{name}_output_norm", made)
        made = self._drop(made, key, PLACES[name])
        x = made if self.spec.residual == "none" else x + made
        return self._norm(weights, f"{name}_norm", x) if self.spec.norm_place == "sum" else x

    def _norm(self, weights: Weights, name: str, x: Stream) -> Stream:
        return normalize(self.spec.norm, part(weights, name), x)

    def _drop(self, x: Stream, key: Key, place: int) -> Stream:
        if key is None or not self.dropout:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)


def block(
    spec: BlockSpec,
    plans: LayerPlans,
    *,
    dropout: float = 0.0,
    again: bool = False,
    lends: LentRoles,
) -> Block:
    """The block that `spec` describes, with attention by these plans."""
    own = plans.attention and Attention.of(plans.attention)
    cross = plans.cross and Attention.of(plans.cross)
    return Block(spec, own, cross, dropout, again, lends)
