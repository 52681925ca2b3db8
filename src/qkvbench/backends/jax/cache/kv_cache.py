"""The key/value cache: for each layer the tensors that its plan caches, nothing else.

It is a value: a step takes one and returns the next, in the same memory if the caller donates it.
Rows are reserved for all tokens, or, under a window, for its sinks and a ring of its length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.linear_attention import MEMORY
from qkvbench.model.rng import generator
from qkvbench.variant import Mask, Plan

Maps = Mapping[str, Float[Array, "_heads _to _width"]]
Rows = Float[Array, "batch _heads _slots _width"]
# How many tokens every sequence has, or each of them.
Count = Int[Array, "..."]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "maps", "lengths", "cross"],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayerCache:
    """The cached tensors of one layer by name; none without attention.

    ``maps`` are the layer's learned maps, made once, since weights are constant in decoding.
    ``cross`` are the rows of a source, which are all there before the first step; of those
    ``lengths`` says how many are read.
    """

    # Arrays; but JAX, at work, puts other things in their places.
    rows: dict[str, Any]
    maps: Mapping[str, Any]
    lengths: Any = None
    cross: Any = None


@partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "count"], meta_fields=["capacity"]
)
@dataclass(frozen=True)
class Cache:
    """The cache of sequences of at most `capacity` tokens.

    Every sequence begins at position 0. ``count`` is how many tokens they have: one number, or one
    for each where they differ. What follows the capacity is not there: whoever makes the cache
    knows how many tokens there will be.
    """

    layers: tuple[Any, ...]
    count: Any
    capacity: int

    @property
    def bytes(self) -> int:
        """The unique storage behind all rows, in bytes, counted on the live arrays."""
        return sum(rows.nbytes for rows in self.arrays())

    def arrays(self) -> list[Rows]:
        """All rows, those of a source included; each array has memory of its own."""
        parts = [part for layer in self.layers for part in (layer, layer.cross) if part]
        return [rows for part in parts for rows in part.rows.values()]

    def reorder(self, parents: Int[Array, " sequences"]) -> "Cache":
        """Each sequence goes on as its parent's; there may be more or fewer than before.

        What is kept of a source belongs to items, not to sequences, and is not touched.
        """
        layers = tuple(
            LayerCache(
                {name: rows[parents] for name, rows in layer.rows.items()},
                layer.maps,
                layer.lengths,
                layer.cross,
            )
            for layer in self.layers
        )
        count = self.count if self.count.ndim == 0 else self.count[parents]
        return Cache(layers, count, self.capacity)

    def filled_randomly(self, tokens: int, seed: int) -> "Cache":
        """The cache as if `tokens` had been read: random rows, to measure without a prefill.

        Numbers of a state are at least 0, as the sums of weights in it are.
        """
        layers = tuple(
            LayerCache(
                {
                    name: jnp.asarray(
                        _random_rows(seed, f"{number}.{name}", rows.shape, positive=name == MEMORY),
                        rows.dtype,
                    )
                    for name, rows in layer.rows.items()
                },
                layer.maps,
                layer.lengths,
                layer.cross,
            )
            for number, layer in enumerate(self.layers)
        )
        return Cache(layers, jnp.full_like(self.count, tokens), self.capacity)


def empty_rows(plan: Plan, batch: int, capacity: int, kind: DTypeLike) -> dict[str, Rows]:
    """Storage for the cached tensors of a plan: (batch, heads, slots, width)."""
    mask = plan.mask
    slots = capacity if mask.local is None else min(mask.sinks + mask.local, capacity)
    return {
        tensor.name: jnp.zeros((batch, tensor.heads, slots, tensor.width), kind)
        for tensor in plan.cached
    }


def with_row(rows: Rows, new: Rows, count: Count, mask: Mask) -> Rows:
    """The rows with a new one for each sequence, which has `count` tokens so far."""
    sinks = _sinks(rows.shape[2], mask)
    slot = count % rows.shape[2]
    if sinks:
        slot = jnp.where(count < sinks, count, sinks + (count - sinks) % (rows.shape[2] - sinks))
    if count.ndim == 0:
        return lax.dynamic_update_slice_in_dim(rows, new.astype(rows.dtype), slot, axis=2)
    put = partial(lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(put)(rows, new.astype(rows.dtype), slot)


def with_rows(rows: Rows, new: Rows, count: Count, mask: Mask) -> Rows:
    """Slots filled with the rows that belong there, of `count` new ones of each sequence."""
    at = jnp.clip(slot_positions(count - 1, rows.shape[2], mask), 0)
    if at.ndim == 1:
        return new[:, :, at].astype(rows.dtype)
    return jnp.take_along_axis(new, at[:, None, :, None], axis=2).astype(rows.dtype)


def slot_positions(last: Count, slots: int, mask: Mask) -> Int[Array, "... slots"]:
    """The position whose row is in each slot; negative if there is none yet.

    The first slots hold the sinks. The others are a ring: a position is in the slot of its
    remainder, so they hold the last ones.
    """
    sinks = _sinks(slots, mask)
    ring = slots - sinks
    latest = last[..., None] - sinks
    position = latest - (latest - jnp.arange(ring)) % ring
    if not sinks:
        return position
    position = jnp.where(position < 0, -1, position + sinks)
    first = jnp.where(jnp.arange(sinks) <= last[..., None], jnp.arange(sinks), -1)
    return jnp.concatenate([first, position], axis=-1)


def _sinks(slots: int, mask: Mask) -> int:
    """How many slots hold sinks; none if there are too few slots to need a ring."""
    return mask.sinks if slots > mask.sinks else 0


def _random_rows(
    seed: int, name: str, shape: tuple[int, ...], *, positive: bool
) -> Float[np.ndarray, "..."]:
    draws = generator(seed, "cache", name)
    if positive:
        return draws.random(shape, dtype=np.float32)
    return draws.standard_normal(shape, dtype=np.float32)
