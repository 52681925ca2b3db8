"""Rotary embeddings on arrays, and tables of numbers for each position."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from qkvbench.variant import Rope

Rows = Float[Array, "batch _heads time head_dim"]
# Positions that are known when a pass is traced are NumPy arrays, so that tables are constants. One
# for each row, or for each row of each sequence.
Positions = Int[np.ndarray, "..."] | Int[Array, "..."]


def looked_up(table: Float[np.ndarray, "positions _features"], at: Positions, like: Array) -> Array:
    """The rows of an fp64 table at these positions: in fp32, or in fp64 if `like` is.

    A position outside the table gets an arbitrary row.
    """
    kind = jnp.promote_types(like.dtype, jnp.float32)
    if isinstance(at, np.ndarray):
        return jnp.asarray(table[at], kind)
    return jnp.asarray(table, kind).at[at].get(mode="clip")


def sinusoids(length: int, features: int, base: float) -> Float[np.ndarray, "length features"]:
    """Sine and cosine of each frequency side by side. arXiv:1706.03762, section 3.5."""
    pairs = np.arange((features + 1) // 2)
    angle = np.outer(np.arange(length), base ** (-2 * pairs / features))
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :features]


def apply_rope(rows: Rows, rope: Rope, at: Positions, end: int, *, back: bool = False) -> Rows:
    """The rows at these positions, all before `end`, rotated; `back` is the inverse.

    Coordinates i and i + half are rotated as a pair; those after the pairs stay.
    """
    table = looked_up(angles(end, rope), at, rows).astype(rows.dtype)
    cos, sin = jnp.split(table[..., None, :, :], 2, axis=-1)
    first, second, rest = jnp.split(rows, [rope.dims // 2, rope.dims], axis=-1)
    sin = -sin if back else sin
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


@lru_cache(maxsize=32)
def angles(length: int, rope: Rope) -> Float[np.ndarray, "length dims"]:
    """Cosines, then sines, of the angle of each pair. arXiv:2104.09864, eq. 34."""
    # In fp32 the angles of late positions would be coarse.
    angle = np.outer(np.arange(length), rope.frequencies)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
