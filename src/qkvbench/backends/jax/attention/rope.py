"""Position schemes on arrays: what is added to the input, what is turned in attention."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from qkvbench.model import Position, Rotary, RotaryWithInverse, rotary_dim

Rows = Float[Array, "batch _heads time head_dim"]
# Positions that are known when a pass is traced are NumPy's, and what is made of them a constant.
# One for each row, or for each row of each sequence.
Places = Int[np.ndarray, "..."] | Int[Array, "..."]


def looked_up(table: Float[np.ndarray, "positions _features"], at: Places, like: Array) -> Array:
    """The rows of a table, made in fp64, at these positions: in fp32, or as `like` in fp64.

    A position that is not in the table gets a row that means nothing.
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


def turned(rows: Rows, position: Position, at: Places, end: int, *, back: bool = False) -> Rows:
    """The rows at these positions, all before `end`, turned as the scheme says.

    Coordinate i and i + half are turned as a pair; what is behind the pairs stays.
    """
    if not isinstance(position, Rotary | RotaryWithInverse):
        return rows
    count = rotary_dim(position, rows.shape[-1])
    table = looked_up(angles(end, count, position.base), at, rows).astype(rows.dtype)
    cos, sin = jnp.split(table[..., None, :, :], 2, axis=-1)
    first, second, rest = jnp.split(rows, [count // 2, count], axis=-1)
    sin = -sin if back else sin
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


@lru_cache(maxsize=32)
def angles(length: int, turned: int, base: float) -> Float[np.ndarray, "length turned"]:
    """Cosines, then sines, of how far each pair turns. arXiv:2104.09864, eq. 34."""
    half = turned // 2
    # In fp32 the angles of late positions would be coarse.
    angle = np.outer(np.arange(length), base ** (-np.arange(half) / half))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
