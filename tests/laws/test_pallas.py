"""The Pallas kernel, in its interpreter, against what XLA's own operations decode."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laws.cases import drawn, plan_of
from qkvbench.backends.jax.attention.layer import Attention
from qkvbench.backends.jax.kernels.pallas_decode import DecodeKernel, chosen
from qkvbench.model import Alibi, NoPosition, Rotary
from qkvbench.variant import sized

SIZE, WHOLE = sized(24, 4, 2), sized(24, 4)
BATCH, CAPACITY = 2, 13
# Sums of products of size one in fp32, in another order.
CLOSE = 1e-5


def _layer(variant, position, size=SIZE):
    return Attention.of(plan_of(variant, position, size=size))


def _weights(layer):
    return {
        name: jnp.asarray(value, jnp.float32)
        for name, value in drawn(layer.plan.parameters).items()
    }


# A case takes seconds, operation by operation: one variant with one position; the rest nightly. A
# case: variant, sizes, which position.
CASES = [
    ("q,k=v", SIZE, 1),
    ("q,k=v/1", SIZE, 1),
    ("q=k=v", WHOLE, 2),
    ("q,k=R(q),v=R(q)", WHOLE, 1),
]
QUICK = ("q,k=v/1",)
POSITIONS = [NoPosition(), Rotary(), Rotary(share=1 / 3)]


@pytest.mark.parametrize(
    ("variant", "size", "position"),
    [
        pytest.param(
            variant,
            size,
            position,
            id=f"{variant}-{position.kind}{getattr(position, 'share', '')}",
            marks=() if variant in QUICK and number == each_time else pytest.mark.nightly,
        )
        for variant, size, each_time in CASES
        for number, position in enumerate(POSITIONS)
    ],
)
def test_a_step_by_the_kernel_is_a_step_of_the_layer(variant, size, position):
    layer = _layer(variant, position, size)
    kernel = chosen(layer.plan, interpret=True)
    assert kernel
    by_kernel = replace(layer, kernel=replace(kernel, tile=4))
    weights = _weights(layer)
    rng = np.random.default_rng(1)
    cache = layer.new_cache(weights, BATCH, CAPACITY)
    with jax.disable_jit():
        for count in ([0, 0], [1, 1], [6, 3], [12, 8]):
            x = jnp.asarray(rng.normal(size=(BATCH, 1, 24)), jnp.float32)
            count = jnp.asarray(count)
            expected, after = layer.step(weights, x, cache, count, CAPACITY)
            found, _ = by_kernel.step(weights, x, cache, count, CAPACITY)
            np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=CLOSE)
            cache = after


def test_rows_behind_the_last_do_not_count_whatever_they_are():
    query = jnp.ones((1, 1, 1, 4))
    rows = jnp.ones((1, 1, 7, 4)).at[:, :, 3:].set(jnp.nan)
    found = DecodeKernel(None, interpret=True, tile=2)(query, rows, jnp.array([3]))
    np.testing.assert_array_equal(found, 1)


def test_the_kernel_reads_one_root_with_plain_scores_and_nothing_else():
    for variant, position in [("q,k,v", Rotary()), ("q,k=v+qknorm", Rotary()), ("q,k=v", Alibi())]:
        assert chosen(_layer(variant, position).plan) is None


def test_elsewhere_than_on_a_tpu_xla_decodes():
    assert _layer("q,k=v", Rotary()).kernel is None
