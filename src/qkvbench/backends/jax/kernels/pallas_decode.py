"""Flash decoding over a root that is both key and value: each row is read once.

Written in Pallas for a TPU, whose grid visits the tiles of rows in order, and tested in the Pallas
interpreter. It has not been run on a TPU or a GPU; on other devices XLA's operations decode.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.rope import angles
from qkvbench.variant import Plan, Rope

# The features of a plan that the kernel can run; a plan with any other is left to XLA.
FEATURES = frozenset({"mask.causal", "read.ApplyRope"})
# Rows of a tile; with a head_dim of 64 in bf16 a tile has 64 KiB.
TILE = 512


@dataclass(frozen=True)
class DecodeKernel:
    """The kernel for the root of one layer; `interpret` runs it without an accelerator."""

    rope: Rope | None
    interpret: bool = False
    tile: int = TILE

    def __call__(
        self,
        query: Float[Array, "batch roots group head_dim"],
        rows: Float[Array, "batch roots slots head_dim"],
        count: Int[Array, " batch"],
    ) -> Float[Array, "batch roots group head_dim"]:
        """softmax(q · rope(row)) · row over the first `count` rows of each sequence, in fp32.

        The queries are already scaled and rotated; a slot is a position.
        """
        batch, roots, group, head_dim = query.shape
        slots = rows.shape[2]
        tile = min(self.tile, slots)
        rotary = self.rope.dims if self.rope else 0
        table = jnp.asarray(
            angles(slots, self.rope) if self.rope else np.zeros((slots, 2)),
            jnp.float32,
        )

        def of_query(item: Any, root: Any, _tile: Any, _count: Any) -> tuple[Any, ...]:
            return item, root, 0, 0

        def of_rows(item: Any, root: Any, tile: Any, _count: Any) -> tuple[Any, ...]:
            return item, root, tile, 0

        def of_table(_item: Any, _root: Any, tile: Any, _count: Any) -> tuple[Any, ...]:
            return tile, 0

        one = (1, 1, group, head_dim)
        return pl.pallas_call(
            partial(_attend, tile=tile, rotary=rotary),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, roots, pl.cdiv(slots, tile)),
                in_specs=[
                    pl.BlockSpec(one, of_query),
                    pl.BlockSpec((1, 1, tile, head_dim), of_rows),
                    pl.BlockSpec((tile, table.shape[1]), of_table),
                ],
                out_specs=pl.BlockSpec(one, of_query),
                scratch_shapes=[pltpu.VMEM((group, 1), jnp.float32) for _ in range(2)],
            ),
            out_shape=jax.ShapeDtypeStruct(query.shape, jnp.float32),
            interpret=self.interpret,
        )(count, query, rows, table)


def decode_kernel(plan: Plan) -> DecodeKernel | None:
    """The kernel for a layer on this device; None if XLA's operations decode it."""
    return chosen(plan) if jax.default_backend() == "tpu" else None


def chosen(plan: Plan, *, interpret: bool = False) -> DecodeKernel | None:
    """The kernel if it can run this plan: one cached root, and no other features."""
    if not plan.shares_rows or plan.is_cross or not plan.features <= FEATURES:
        return None
    return DecodeKernel(plan.rope if plan.key_ops_on_read else None, interpret)


def _attend(
    count: Any,
    query: Any,
    rows: Any,
    table: Any,
    out: Any,
    *sums: Any,
    tile: int,
    rotary: int,
) -> None:
    """Add one tile, rescaling the sums to the new maximum. arXiv:2205.14135, algorithm 1."""
    row_max, row_sum = sums
    item, number = pl.program_id(0), pl.program_id(2)

    @pl.when(number == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)
        row_max[...] = jnp.full_like(row_max, -jnp.inf)
        row_sum[...] = jnp.zeros_like(row_sum)

    # slot, valid: (tile, 1); value, key: (tile, head_dim); scores: (group, tile)
    slot = number * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
    valid = slot < count[item]
    # Rows after the last one are undefined; 0 · NaN would be NaN.
    value = jnp.where(valid, rows[0, 0].astype(jnp.float32), 0.0)
    key = _apply_rope(value, table[...], rotary)
    scores = jnp.dot(query[0, 0].astype(jnp.float32), key.T)
    scores = jnp.where(valid.T, scores, -jnp.inf)

    new_max = jnp.maximum(row_max[...], scores.max(axis=-1, keepdims=True))
    probs = jnp.exp(scores - new_max)
    rescale = jnp.exp(row_max[...] - new_max)
    row_max[...] = new_max
    row_sum[...] = row_sum[...] * rescale + probs.sum(axis=-1, keepdims=True)
    out[0, 0] = out[0, 0] * rescale + jnp.dot(probs, value)

    @pl.when(number == pl.num_programs(2) - 1)
    def _() -> None:
        out[0, 0] = out[0, 0] / row_sum[...]


def _apply_rope(rows: Array, table: Array, rotary: int) -> Array:
    """RoPE on the first `rotary` coordinates. arXiv:2104.09864, eq. 34."""
    half = rotary // 2
    if not half:
        return rows
    first, second, rest = rows[:, :half], rows[:, half:rotary], rows[:, rotary:]
    cos, sin = table[:, :half], table[:, half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
