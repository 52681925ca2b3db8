"""Decoding with one pass over a root that is key and value: each row is read once.

Written in Pallas for a TPU, whose grid goes from one tile of rows to the next in order, and tested
in its interpreter. It has not been run on a TPU or a GPU; elsewhere XLA's own operations decode.
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
# Rows of a tile: of 64 numbers in bf16 these are 64 KiB.
TILE = 512


@dataclass(frozen=True)
class DecodeKernel:
    """The kernel for one layer's root; in the interpreter where there is no accelerator."""

    rope: Rope | None
    interpret: bool = False
    tile: int = TILE

    def __call__(
        self,
        query: Float[Array, "batch roots group head_dim"],
        rows: Float[Array, "batch roots slots head_dim"],
        count: Int[Array, " batch"],
    ) -> Float[Array, "batch roots group head_dim"]:
        """softmax(q·turned(row))·row over the first `count` rows of each sequence, in fp32.

        The queries are scaled and turned already; slot and position are the same.
        """
        batch, roots, group, head_dim = query.shape
        slots = rows.shape[2]
        tile = min(self.tile, slots)
        turned = self.rope.dims if self.rope else 0
        table = jnp.asarray(
            angles(slots, turned, self.rope.base) if self.rope else np.zeros((slots, 2)),
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
            partial(_attend, tile=tile, turned=turned),
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
    """The kernel for a layer that decodes here; None if XLA's own operations do."""
    return chosen(plan) if jax.default_backend() == "tpu" else None


def chosen(plan: Plan, *, interpret: bool = False) -> DecodeKernel | None:
    """The kernel if it can run this plan: one cached root, and no other features."""
    if len(plan.cached) > 1 or plan.is_cross or not plan.features <= FEATURES:
        return None
    return DecodeKernel(plan.rope if plan.key_ops_on_read else None, interpret)


def _attend(
    count: Any,
    query: Any,
    rows: Any,
    table: Any,
    seen: Any,
    *sums: Any,
    tile: int,
    turned: int,
) -> None:
    """One tile: the sums so far are brought to the new maximum. arXiv:2205.14135, algorithm 1."""
    most, total = sums
    item, number = pl.program_id(0), pl.program_id(2)

    @pl.when(number == 0)
    def _() -> None:
        seen[...] = jnp.zeros_like(seen)
        most[...] = jnp.full_like(most, -jnp.inf)
        total[...] = jnp.zeros_like(total)

    slot = number * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
    there = slot < count[item]
    # Behind the last row there may be anything, and nothing times it need not be nothing.
    value = jnp.where(there, rows[0, 0].astype(jnp.float32), 0.0)
    key = _turn(value, table[...], turned)
    products = jnp.dot(query[0, 0].astype(jnp.float32), key.T)
    products = jnp.where(there.T, products, -jnp.inf)

    highest = jnp.maximum(most[...], products.max(axis=-1, keepdims=True))
    shares = jnp.exp(products - highest)
    before = jnp.exp(most[...] - highest)
    most[...] = highest
    total[...] = total[...] * before + shares.sum(axis=-1, keepdims=True)
    seen[0, 0] = seen[0, 0] * before + jnp.dot(shares, value)

    @pl.when(number == pl.num_programs(2) - 1)
    def _() -> None:
        seen[0, 0] = seen[0, 0] / total[...]


def _turn(rows: Array, table: Array, turned: int) -> Array:
    """The rows turned by position; what is behind the pairs stays. arXiv:2104.09864, eq. 34."""
    half = turned // 2
    if not half:
        return rows
    first, second, rest = rows[:, :half], rows[:, half:turned], rows[:, turned:]
    cos, sin = table[:, :half], table[:, half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
