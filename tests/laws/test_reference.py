"""The NumPy reference, which every backend is held against, holds the laws itself."""

import numpy as np
import pytest

from laws.arms import POSITIONS, SIZE, TIME, drawn, every_position, every_variant, stream
from qkvbench import reference
from qkvbench.model import NoPosition, Rotary
from qkvbench.variant import parse, resolve, without_value_rotation

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11


@every_position
@every_variant
def test_decoding_over_kept_roots_is_attention_over_the_whole(variant, position):
    plan = resolve(variant, SIZE)
    weights, x = drawn(plan), stream()
    whole = reference.forward(plan, weights, x, causal=True, position=position)
    steps = reference.decode(plan, weights, x, position=position)
    np.testing.assert_allclose(steps, whole, atol=EXACT)


@every_variant
def test_a_later_token_changes_nothing_earlier(variant):
    plan = resolve(variant, SIZE)
    weights, x = drawn(plan), stream()
    changed = x.copy()
    changed[-1] += 1
    before = reference.forward(plan, weights, x, causal=True, position=Rotary())
    after = reference.forward(plan, weights, changed, causal=True, position=Rotary())
    np.testing.assert_array_equal(after[:-1], before[:-1])
    assert np.abs(after[-1] - before[-1]).max() > EXACT


@every_variant
def test_a_value_is_the_same_at_every_position(variant):
    plan = resolve(variant, SIZE)
    weights, x = drawn(plan), stream()
    roots = reference.project(plan, weights, x)
    here = reference.make("v", plan, weights, roots, Rotary(), np.arange(TIME))
    there = reference.make("v", plan, weights, roots, Rotary(), np.arange(TIME) + 5)
    np.testing.assert_array_equal(here, there)


@every_variant
def test_rotary_scores_depend_on_the_distance_only(variant):
    plan = resolve(variant, SIZE)
    weights, x = drawn(plan), stream()
    roots = reference.project(plan, weights, x)

    def scores(first):
        times = np.arange(TIME) + first
        q, k = (reference.make(r, plan, weights, roots, Rotary(), times) for r in ("q", "k"))
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        return np.einsum("qhd,khd->hqk", q, k)

    np.testing.assert_allclose(scores(0), scores(31), atol=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_rotation_is_orthogonal_and_keeps_orientation(heads):
    numbers = np.random.default_rng(2).normal(size=(heads, 10))
    turns = reference.rotation(numbers, 5)
    np.testing.assert_allclose(
        turns @ np.swapaxes(turns, 1, 2), np.stack([np.eye(5)] * heads), atol=EXACT
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=EXACT)


@every_variant
def test_a_rotation_on_the_value_folds_into_the_output_projection(variant):
    plan = resolve(variant, SIZE)
    weights, x = drawn(plan), stream()
    plain = resolve(without_value_rotation(variant), SIZE)
    turns = [op for op in plan.paths["v"].ops if op not in plain.paths["v"].ops]
    folded = {name: value for name, value in weights.items() if name != "v.rotation"}
    group = SIZE.heads // plan.heads("v")
    columns = weights["o.weight"].reshape(SIZE.d_model, SIZE.heads, SIZE.head_dim)
    for op in reversed(turns):
        turn = reference.rotation(weights[f"{op.role}.rotation"], SIZE.head_dim)
        columns = np.einsum("ohe,hed->ohd", columns, np.repeat(turn, group, axis=0))
    folded["o.weight"] = columns.reshape(SIZE.d_model, -1)
    np.testing.assert_allclose(
        reference.forward(plain, folded, x, causal=True, position=Rotary()),
        reference.forward(plan, weights, x, causal=True, position=Rotary()),
        atol=EXACT,
    )


def test_one_token_that_sees_only_itself_gives_its_projected_value():
    plan = resolve(parse("q,k,v"), SIZE)
    weights, x = drawn(plan), stream(time=1)
    value = x @ weights["v.weight"].T + weights["v.bias"]
    expected = value @ weights["o.weight"].T + weights["o.bias"]
    for position in POSITIONS:
        found = reference.forward(plan, weights, x, causal=False, position=position)
        np.testing.assert_allclose(found, expected, atol=EXACT)


def test_without_positions_or_a_mask_the_order_of_tokens_does_not_matter():
    plan = resolve(parse("q,k=v"), SIZE)
    weights, x = drawn(plan), stream()
    straight = reference.forward(plan, weights, x, causal=False, position=NoPosition())
    turned = reference.forward(plan, weights, x[::-1], causal=False, position=NoPosition())
    np.testing.assert_allclose(turned[::-1], straight, atol=EXACT)
