"""What is added to the scores and what a query sees; attention by rows where that is needed."""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from qkvbench.backends.jax.attention.rope import Places, looked_up
from qkvbench.backends.jax.models.weights import Shapes, Weights
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import Alibi, Position
from qkvbench.variant import FEATURES, Relative, Separable
from qkvbench.variant import Scores as Spec

# `_` is checked for nothing: queries and keys may differ in it.
Heads = Float[Array, "batch _heads _time head_dim"]
Lengths = Int[Array, " batch"]

# Types in which the framework's own function attends: its softmax is in fp32 always, and on a CPU
# it has no products of fp16.
LIBRARY_S = (jnp.float32, jnp.bfloat16)
# Scores that are held at a time where they are made by rows, in all heads and sequences.
HELD = 2**22


@dataclass(frozen=True)
class Scores:
    """softmax(temperature·q·k / sqrt(head_dim) + shift)·v, with everything that makes the shift."""

    spec: Spec
    position: Position
    heads: int
    causal: bool
    window: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the scores are Q·K and nothing is added to them."""
        return not isinstance(self.position, Alibi) and self.spec.correction is None

    def shapes(self) -> Shapes:
        """What is learned of the scores."""
        if self.spec.correction is None:
            return {}
        return {"correction.temperature": (1,), "correction.features": (FEATURES,)}

    def __call__(
        self, weights: Weights, q: Heads, k: Heads, v: Heads, lengths: Lengths | None = None
    ) -> Heads:
        """What each query attends to, over a whole sequence.

        `lengths` counts the leading rows of each sequence that are seen. Where that would be many
        scores, a few rows of them are held at a time.
        """
        batch, heads, time, _ = q.shape
        rows = max(1, HELD // (batch * heads * k.shape[2]))
        if rows >= time:
            return self._rows(weights, q, k, v, np.arange(time), lengths)
        # Made again in the backward pass: kept, the scores would grow with time × time.
        some = jax.checkpoint(self._rows)
        whole = time // rows * rows
        places = jnp.arange(whole).reshape(-1, rows)
        parts = q[:, :, :whole].reshape(batch, heads, -1, rows, q.shape[-1])
        seen = jax.lax.map(
            lambda part: some(weights, part[0], k, v, part[1], lengths),
            (jnp.moveaxis(parts, 2, 0), places),
        )
        seen = jnp.moveaxis(seen, 0, 2).reshape(batch, heads, whole, -1)
        if whole == time:
            return seen
        rest = some(weights, q[:, :, whole:], k, v, jnp.arange(whole, time), lengths)
        return jnp.concatenate([seen, rest], axis=2)

    def shares(
        self,
        weights: Weights,
        products: Float[Array, "batch _heads rows columns"],
        rows: Places,
        columns: Places,
        end: int,
        lengths: Lengths | None = None,
    ) -> Float[Array, "batch _heads rows columns"]:
        """The weights of attention, in fp32 or better, from products scaled by 1/sqrt(head_dim).

        Rows and columns are at these positions, all of them before `end`.
        """
        scores = upcast(products)
        if self.spec.correction:
            scores = scores * upcast(weights["correction.temperature"])
            scores = scores + self._corrected(weights, rows, columns, end, scores)
        if isinstance(self.position, Alibi):
            # arXiv:2108.12409, section 3: a geometric sequence of slopes from 2^(-8/heads).
            slopes = 2.0 ** (-8 * np.arange(1, self.heads + 1) / self.heads)
            distance = jnp.abs(_distance(rows, columns)).astype(scores.dtype)
            scores = scores - slopes.astype(scores.dtype)[:, None, None] * distance
        scores = jnp.where(self.seen(rows, columns, lengths), scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1)

    def seen(
        self, rows: Places, columns: Places, lengths: Lengths | None
    ) -> Bool[Array, "... one rows columns"]:
        """Which columns each row sees, alike in all heads; before position 0 there is none."""
        distance = _distance(rows, columns)
        seen = jnp.broadcast_to(columns[..., None, None, :] >= 0, distance.shape)
        if self.causal:
            seen = seen & (distance >= 0)
        if self.window is not None:
            seen = seen & (jnp.abs(distance) < self.window)
        if lengths is not None:
            seen = seen & (columns < lengths[:, None])[:, None, None]
            if self.window is not None:
                # Behind the end of a sequence there may be nothing in sight; it means nothing.
                seen = seen | (~seen.any(-1, keepdims=True) & (distance == 0))
        if not self.spec.diagonal:
            others = seen & (distance != 0)
            seen = jnp.where(others.any(-1, keepdims=True), others, seen)
        return seen

    def _rows(
        self,
        weights: Weights,
        q: Heads,
        k: Heads,
        v: Heads,
        rows: Places,
        lengths: Lengths | None,
    ) -> Heads:
        """What queries at the positions `rows` attend to."""
        columns = np.arange(k.shape[2])
        if self.plain and q.dtype in LIBRARY_S:
            return self._library_s(q, k, v, self.seen(rows, columns, lengths))
        batch, heads, time, head_dim = q.shape
        grouped = q.reshape(batch, k.shape[1], -1, head_dim) * head_dim**-0.5
        products = products_of(grouped, k).reshape(batch, heads, time, -1)
        end = max(time, k.shape[2]) if isinstance(rows, np.ndarray) else k.shape[2]
        shares = self.shares(weights, products, rows, columns, end, lengths).astype(v.dtype)
        seen = shares.reshape(batch, k.shape[1], -1, k.shape[2]) @ v
        return seen.reshape(batch, heads, time, head_dim)

    def _library_s(
        self, q: Heads, k: Heads, v: Heads, seen: Bool[Array, "... one rows columns"]
    ) -> Heads:
        """The same by the framework's own function."""
        q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
        mask = seen if seen.ndim == 4 else seen[None]
        return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask), 1, 2)

    def _corrected(
        self, weights: Weights, rows: Places, columns: Places, end: int, like: Array
    ) -> Array:
        """The learned functions of the column, or of the distance, for all heads."""
        features = weights["correction.features"].astype(like.dtype)
        of_rows, of_columns = (looked_up(_described(end), at, like) for at in (rows, columns))
        match self.spec.correction:
            case Relative():
                # sin(i - j) and cos(i - j) are products of those of i and of j.
                sin, cos = jnp.split(of_rows, 2, axis=-1)
                of_sin, of_cos = jnp.split(features, 2)
                left = [of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos]
                found = jnp.concatenate(left, axis=-1) @ jnp.swapaxes(of_columns, -1, -2)
                return found[..., None, :, :]
            case Separable() | None:
                return (of_columns @ features)[..., None, None, :]


def products_of(left: Heads, right: Heads) -> Float[Array, "batch heads _rows _columns"]:
    """Products of rows by sequence and head, summed in fp32 or better."""
    kind = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum("bhqd,bhkd->bhqk", left, right, preferred_element_type=kind)


def _distance(rows: Places, columns: Places) -> Int[Array, "... one rows columns"]:
    """From each column to each row; positive where the column is earlier."""
    return jnp.asarray(rows[..., :, None] - columns[..., None, :])[..., None, :, :]


@lru_cache(maxsize=32)
def _described(length: int) -> Float[np.ndarray, "length features"]:
    """The features of each position: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    angle = np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
