"""Softmax attention as a plan describes it: mask, biases of the scores, by rows if that is needed.

Axes: batch, heads (of Q), groups (heads of K), rows (queries), columns (keys), width of a head.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from qkvbench.backends.jax.attention.rope import Positions, looked_up
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.variant import FEATURES, AlibiBias, Bucketed, Plan, Relative, ScoreBias

# `_` is checked for nothing: queries and keys may differ in it.
Heads = Float[Array, "batch _heads _time _width"]
Lengths = Int[Array, " batch"]

# Dtypes for `jax.nn.dot_product_attention`: its softmax is always in fp32, and on a CPU it has no
# products of fp16.
LIBRARY_DTYPES = (jnp.float32, jnp.bfloat16)
# Scores that exist at a time if they are computed by rows, in all heads and sequences.
MAX_SCORES = 2**22


@dataclass(frozen=True)
class SoftmaxAttention:
    """softmax(temperature·q·k / sqrt(width) + bias)·v, under the plan's mask."""

    plan: Plan

    def __call__(
        self, weights: Weights, q: Heads, k: Heads, v: Heads, lengths: Lengths | None = None
    ) -> Heads:
        """The attention output over a whole sequence.

        `lengths` counts the leading keys of each sequence that are not padding. If there are many
        scores, they are computed a few rows at a time.
        """
        batch, heads, time, _ = q.shape
        rows = max(1, MAX_SCORES // (batch * heads * k.shape[2]))
        if rows >= time:
            return self._attend_rows(weights, q, k, v, np.arange(time), lengths)
        # Computed again in the backward pass: saved scores would grow with time × time.
        some = jax.checkpoint(self._attend_rows)
        whole = time // rows * rows
        positions = jnp.arange(whole).reshape(-1, rows)
        parts = q[:, :, :whole].reshape(batch, heads, -1, rows, q.shape[-1])
        context = jax.lax.map(
            lambda part: some(weights, part[0], k, v, part[1], lengths),
            (jnp.moveaxis(parts, 2, 0), positions),
        )
        context = jnp.moveaxis(context, 0, 2).reshape(batch, heads, whole, -1)
        if whole == time:
            return context
        rest = some(weights, q[:, :, whole:], k, v, jnp.arange(whole, time), lengths)
        return jnp.concatenate([context, rest], axis=2)

    def attention_weights(
        self,
        weights: Weights,
        products: Float[Array, "batch _heads rows columns"],
        rows: Positions,
        columns: Positions,
        end: int,
        lengths: Lengths | None = None,
    ) -> Float[Array, "batch _heads rows columns"]:
        """Softmax over the visible columns, in fp32 or better, of q·k / sqrt(width).

        Rows and columns are at these positions, all of them before `end`.
        """
        scores = upcast(products)
        if cap := self.plan.scores.softcap:
            scores = cap * jnp.tanh(scores / cap)
        for bias in self.plan.biases:
            if isinstance(bias, AlibiBias):
                slopes = np.array(bias.slopes(self.plan.geometry.heads)).astype(scores.dtype)
                distance = jnp.abs(_distance(rows, columns)).astype(scores.dtype)
                scores = scores - slopes[:, None, None] * distance
            elif isinstance(bias, Bucketed):
                scores = scores + upcast(self._bucketed(weights, bias, rows, columns))
            else:
                scores = scores * upcast(weights["correction.temperature"])
                scores = scores + self._learned_bias(weights, bias, rows, columns, end, scores)
        scores = jnp.where(self.visible(rows, columns, lengths), scores, -jnp.inf)
        if self.plan.scores.sink_logit:
            sink = upcast(weights["correction.sink"])[:, None, None]
            sink = jnp.broadcast_to(sink, (*scores.shape[:-1], 1)).astype(scores.dtype)
            joined = jnp.concatenate([scores, sink], axis=-1)
            return jax.nn.softmax(joined, axis=-1)[..., :-1]
        return jax.nn.softmax(scores, axis=-1)

    def visible(
        self, rows: Positions, columns: Positions, lengths: Lengths | None
    ) -> Bool[Array, "... one rows columns"]:
        """The mask: True if a row may attend to a column, alike in all heads.

        A negative position is an empty slot.
        """
        valid = columns[..., None, :] >= 0
        if lengths is not None:
            valid = valid & (columns < lengths[:, None])[:, None]
        mask = self.plan.mask.visible(rows, columns, valid)
        return jnp.asarray(mask)[..., None, :, :]

    def _attend_rows(
        self,
        weights: Weights,
        q: Heads,
        k: Heads,
        v: Heads,
        rows: Positions,
        lengths: Lengths | None,
    ) -> Heads:
        """The attention output of queries at the positions `rows`."""
        columns = np.arange(k.shape[2])
        one_width = q.shape[-1] == v.shape[-1]
        if self.plan.plain_scores and q.dtype in LIBRARY_DTYPES and one_width:
            return self._library(q, k, v, self.visible(rows, columns, lengths))
        batch, heads, time, width = q.shape
        grouped = q.reshape(batch, k.shape[1], -1, width) * width**-0.5
        products = products_of(grouped, k).reshape(batch, heads, time, -1)
        end = max(time, k.shape[2]) if isinstance(rows, np.ndarray) else k.shape[2]
        probabilities = self.attention_weights(weights, products, rows, columns, end, lengths)
        probabilities = probabilities.astype(v.dtype).reshape(batch, k.shape[1], -1, k.shape[2])
        return (probabilities @ v).reshape(batch, heads, time, v.shape[-1])

    def _library(
        self, q: Heads, k: Heads, v: Heads, visible: Bool[Array, "... one rows columns"]
    ) -> Heads:
        """The same by JAX's own function, whose axes are (batch, time, heads, head_dim)."""
        q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
        mask = visible if visible.ndim == 4 else visible[None]
        return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask), 1, 2)

    def _bucketed(
        self, weights: Weights, bias: Bucketed, rows: Positions, columns: Positions
    ) -> Float[Array, "... heads rows columns"]:
        """The learned number of each head and bucket of distance."""
        table = jnp.asarray(bias.table(causal=self.plan.mask.causal))
        distance = jnp.asarray(rows[..., :, None] - columns[..., None, :])
        bucket = table[jnp.clip(distance, -bias.longest, bias.longest) + bias.longest]
        # (heads, ..., rows, columns) -> (..., heads, rows, columns)
        return jnp.moveaxis(weights["correction.buckets"][:, bucket], 0, -3)

    def _learned_bias(
        self,
        weights: Weights,
        bias: ScoreBias,
        rows: Positions,
        columns: Positions,
        end: int,
        like: Array,
    ) -> Array:
        """The learned function of the column, or of the distance, for all heads."""
        features = weights["correction.features"].astype(like.dtype)
        of_rows, of_columns = (looked_up(_features(end), at, like) for at in (rows, columns))
        if not isinstance(bias, Relative):
            return (of_columns @ features)[..., None, None, :]
        # sin(i - j) and cos(i - j) are products of those of i and of j.
        sin, cos = jnp.split(of_rows, 2, axis=-1)
        of_sin, of_cos = jnp.split(features, 2)
        left = [of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos]
        found = jnp.concatenate(left, axis=-1) @ jnp.swapaxes(of_columns, -1, -2)
        return found[..., None, :, :]


def products_of(left: Heads, right: Heads) -> Float[Array, "batch heads _rows _columns"]:
    """Products of rows by sequence and head, summed in fp32 or better."""
    kind = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum("bhqd,bhkd->bhqk", left, right, preferred_element_type=kind)


def _distance(rows: Positions, columns: Positions) -> Int[Array, "... one rows columns"]:
    """From each column to each row; positive where the column is earlier."""
    return jnp.asarray(rows[..., :, None] - columns[..., None, :])[..., None, :, :]


@lru_cache(maxsize=32)
def _features(length: int) -> Float[np.ndarray, "length features"]:
    """The features of each position: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    angle = np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
