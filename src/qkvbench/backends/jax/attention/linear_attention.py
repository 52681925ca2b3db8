"""Linear attention: whole sequences in chunks, and one token over a matrix of fixed size.

Axes: batch, groups (heads of K), rows (queries of all heads of a group), features of a head. All
of it is computed in fp32 or better: sums run over the whole text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, nn
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Int

from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model.random_features import random_features
from qkvbench.variant import CHUNK, DECAY, STRENGTH, Derivation, Elu, Favor, GatedDelta, Plan

# `_` is checked for nothing: roots of one plan may differ in heads.
Heads = Float[Array, "batch _heads _time _width"]
Lengths = Int[Array, "..."]
# The matrix of each key/value head.
Memory = Float[Array, "batch groups rows width"]
Made = Mapping[Derivation, Heads]

# The name of the memory among the arrays of a cache.
MEMORY = "memory"
# Beside the sum of squares, so that a vector of zeros stays one.
EPS = 1e-6


@dataclass(frozen=True)
class LinearAttention:
    """The output of linear attention as a plan describes it; nothing here is learned."""

    plan: Plan

    def __call__(
        self, q: Heads, k: Heads, v: Heads, made: Made, lengths: Lengths | None = None
    ) -> tuple[Heads, Memory]:
        """The output over a whole sequence, and the memory that it leaves.

        `lengths` counts the leading positions of each sequence that are not padding. Nothing of
        size time × time is made.
        """
        q, k, wide = (upcast(each) for each in (q, k, v))
        if isinstance(self.plan.linear, GatedDelta):
            context, memory = self._delta(q, k, wide, made, lengths)
        else:
            context, memory = self._weighted(q, k, wide, lengths)
        return context.astype(v.dtype), memory

    def step(
        self, q: Heads, k: Heads, v: Heads, made: Made, memory: Memory
    ) -> tuple[Heads, Memory]:
        """The output of one more token of each sequence, and the memory with it."""
        kind, heads = v.dtype, q.shape[1]
        q, k, v = (upcast(each) for each in (q, k, v))
        if isinstance(self.plan.linear, GatedDelta):
            q, k = _unit(q), _unit(k)
            log_decay, strength = self._gates(made)
            memory = memory * jnp.exp(log_decay)
            error = strength * (v - k @ memory)
            memory = memory + jnp.swapaxes(k, 2, 3) * error
            context = _grouped(q, k.shape[1]) @ memory
        else:
            memory = memory + jnp.swapaxes(self.features(k), 2, 3) * _counted(v)
            context = _shares(_grouped(self.features(q, of_query=True), k.shape[1]) @ memory)
        return context.reshape(len(q), heads, 1, -1).astype(kind), memory

    def features(self, rows: Heads, *, of_query: bool = False) -> Heads:
        """F of each head, all of its numbers above 0; heads of one group have the same f.

        Those of FAVOR+ as in the reference, but of a query times a number that makes the largest 1:
        the share of each V is the same, and the features of a long query do not all become 0.
        """
        if isinstance(self.plan.linear, Elu):
            return jnp.where(rows > 0, rows + 1, jnp.exp(jnp.minimum(rows, 0)))
        favor = cast(Favor, self.plan.linear)
        drawn = random_features(favor, self.plan.heads("k"), rows.shape[-1])
        x = rows * rows.shape[-1] ** -0.25
        products = _grouped(x, len(drawn)) @ np.swapaxes(drawn, 1, 2).astype(rows.dtype)
        size = jnp.square(x).sum(-1, keepdims=True) / 2
        exponents = products.reshape(*rows.shape[:3], -1) - size
        if of_query:
            largest = lax.stop_gradient(exponents.max(-1, keepdims=True))
            return jnp.exp(exponents - largest)
        return jnp.exp(exponents) * favor.features**-0.5

    def attention_weights(
        self, q: Heads, k: Heads, made: Made, visible: Array
    ) -> Float[Array, "batch heads time time"]:
        """The share of each V in each output; those of the delta rule need not be above 0."""
        if isinstance(self.plan.linear, GatedDelta):
            ones = jnp.broadcast_to(jnp.eye(k.shape[2]), (*k.shape[:3], k.shape[2]))
            return self(q, k, ones.astype(k.dtype), made)[0]
        q, k = self.features(upcast(q), of_query=True), self.features(upcast(k))
        keys = jnp.repeat(k, q.shape[1] // k.shape[1], axis=1)
        weights = jnp.where(visible, q @ jnp.swapaxes(keys, 2, 3), 0)
        return weights / _above_zero(weights.sum(-1, keepdims=True))

    def _weighted(
        self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None
    ) -> tuple[Heads, Memory]:
        """Σ f(q)·f(k)·v / Σ f(q)·f(k) of visible keys, and the sums over all of them."""
        batch, heads, time, _ = q.shape
        groups = k.shape[1]
        f_q, f_k, counted = self.features(q, of_query=True), self.features(k), _counted(v)
        if lengths is not None:
            f_k = f_k * _valid(lengths, time)
        if not self.plan.mask.causal:
            memory = jnp.swapaxes(f_k, 2, 3) @ counted
            summed = (_grouped(f_q, groups) @ memory).reshape(batch, heads, time, -1)
            return _shares(summed), memory
        size = min(CHUNK, time)
        # (batch, groups, chunks, rows, features): the heads of a group are rows of one product.
        f_q = _in_chunks(f_q, groups, size)
        f_k, counted = (_in_chunks(each, groups, size) for each in (f_k, counted))
        sums = jnp.cumsum(jnp.swapaxes(f_k, 3, 4) @ counted, axis=2)
        before = jnp.pad(sums[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))
        products = f_q @ jnp.swapaxes(f_k, 3, 4)
        weights = jnp.where(_lower_mask(products.shape[3], size), products, 0)
        summed = f_q @ before + weights @ counted
        return _shares(_from_chunks(summed, size, heads, time)), sums[:, :, -1]

    def _delta(
        self, q: Heads, k: Heads, v: Heads, made: Made, lengths: Lengths | None
    ) -> tuple[Heads, Memory]:
        """The gated delta rule, chunk by chunk: arXiv:2412.06464, section 3.3.

        In a chunk that begins with the memory S, with g the decay from its beginning, each token t
        writes u_t = β_t·(v_t − g_t·Sᵀk_t − Σ g_t/g_j·(k_j·k_t)·u_j) over earlier tokens j.
        """
        _, heads, time, _ = q.shape
        groups, size = k.shape[1], min(CHUNK, time)
        log_decay, strength = self._gates(made)
        if lengths is not None:
            # A token of padding writes nothing, and nothing is forgotten.
            valid = _valid(lengths, time)
            log_decay, strength = log_decay * valid, strength * valid
        q = _in_chunks(_unit(q), groups, size)  # (batch, groups, chunks, rows, width)
        k, v = (_in_chunks(each, groups, size) for each in (_unit(k), v))
        log_decay, strength = (_in_chunks(each, groups, size) for each in (log_decay, strength))
        total = jnp.cumsum(log_decay, axis=3)  # log g
        lower = _lower_mask(size, size)
        # Differences above the diagonal are positive and might overflow.
        difference = jnp.where(lower, total - jnp.swapaxes(total, 3, 4), 0)
        between = jnp.where(lower, jnp.exp(difference), 0)  # g_t/g_j, at most 1
        decayed = jnp.exp(total)
        products = k @ jnp.swapaxes(k, 3, 4)
        earlier = jnp.tril(strength * products * between, -1)
        wanted = jnp.concatenate([strength * v, strength * decayed * k], axis=-1)
        solved = solve_triangular(jnp.eye(size) + earlier, wanted, lower=True, unit_diagonal=True)
        own, recalled = jnp.split(solved, [v.shape[-1]], axis=-1)
        repeat = q.shape[3] // size
        seen = q @ jnp.swapaxes(k, 3, 4) * jnp.tile(between, (1, 1, 1, repeat, 1))
        of_query = q * jnp.tile(decayed, (1, 1, 1, repeat, 1))
        writing = k * jnp.exp(total[:, :, :, -1:] - total)

        def advance(memory: Memory, chunk: tuple[Array, ...]) -> tuple[Memory, Array]:
            own, recalled, of_query, seen, writing, kept = chunk
            written = own - recalled @ memory
            rows = of_query @ memory + seen @ written
            return kept * memory + jnp.swapaxes(writing, 2, 3) @ written, rows

        memory = jnp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), k.dtype)
        chunks = (own, recalled, of_query, seen, writing, decayed[:, :, :, -1:])
        memory, rows = lax.scan(advance, memory, tuple(jnp.moveaxis(e, 2, 0) for e in chunks))
        return _from_chunks(jnp.moveaxis(rows, 0, 2), size, heads, time), memory

    def _gates(self, made: Made) -> tuple[Heads, Heads]:
        """The logarithm of the decay, and the strength, of each token in each key/value head."""
        linear = cast(GatedDelta, self.plan.linear)
        decay, strength = (upcast(made[Derivation(name, ())]) for name in (DECAY, STRENGTH))
        rates = jnp.asarray(linear.rates(decay.shape[1]), decay.dtype)[:, None, None]
        return -rates * nn.softplus(decay), nn.sigmoid(strength)


def _unit(rows: Heads) -> Heads:
    """Each vector with length 1."""
    return rows * lax.rsqrt(jnp.square(rows).sum(-1, keepdims=True) + EPS)


def _counted(v: Heads) -> Heads:
    """V with a column of ones, whose sum is that of the weights."""
    return jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)


def _shares(summed: Array) -> Array:
    """The sums of V over those of the weights, which are the last column."""
    return summed[..., :-1] / _above_zero(summed[..., -1:])


def _above_zero(total: Array) -> Array:
    """Sums of weights, of which random features of huge keys may leave nothing.

    So far from the smallest number that a gradient, divided by one of them, is finite.
    """
    return jnp.maximum(total, float(jnp.finfo(total.dtype).tiny) ** 0.8)


def _grouped(rows: Heads, groups: int) -> Float[Array, "batch groups _rows _width"]:
    """The heads of a group, one after the other."""
    return rows.reshape(len(rows), groups, -1, rows.shape[-1])


def _valid(lengths: Lengths, time: int) -> Array:
    """True for each position that is no padding."""
    return (jnp.arange(time) < lengths[..., None])[..., None, :, None]


def _lower_mask(rows: int, size: int) -> np.ndarray:
    """True if a row, those of each head one after the other, comes no earlier than a column."""
    return np.arange(rows)[:, None] % size >= np.arange(size)


def _in_chunks(
    rows: Heads, groups: int, size: int
) -> Float[Array, "batch groups _chunks _rows _width"]:
    """The rows of each chunk of `size` tokens, filled up with zeros: head by head of a group."""
    batch, heads, time, width = rows.shape
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -time % size), (0, 0)))
    split = rows.reshape(batch, groups, heads // groups, -1, size, width)
    chunks = jnp.swapaxes(split, 2, 3)
    return chunks.reshape(batch, groups, chunks.shape[2], -1, width)


def _from_chunks(rows: Array, size: int, heads: int, time: int) -> Heads:
    """The inverse of `_in_chunks`."""
    batch, groups, chunks, _, width = rows.shape
    split = rows.reshape(batch, groups, chunks, -1, size, width)
    joined = jnp.swapaxes(split, 2, 3).reshape(batch, heads, chunks * size, width)
    return joined[:, :, :time]
