"""The NumPy reference, which every backend is held against, holds the laws itself."""

import numpy as np
import pytest

from laws.arms import (
    POSITIONS,
    SIZE,
    SUFFIXED,
    TIME,
    drawn,
    every_position,
    every_suffix,
    every_variant,
    stream,
    suffixed,
)
from qkvbench import reference
from qkvbench.model import Alibi, NoPosition, Rotary, RotaryWithInverse
from qkvbench.variant import FEATURES, parse, resolve, sized, without_value_rotation

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11


@every_position
@every_variant
def test_decoding_over_kept_roots_is_attention_over_the_whole(variant, position):
    for suffix in SUFFIXED:
        plan = resolve(suffixed(variant, suffix), SIZE, position.turned)
        weights, x = drawn(plan), stream()
        whole = reference.forward(plan, weights, x, causal=True, position=position)
        steps = reference.decode(plan, weights, x, position=position)
        np.testing.assert_allclose(steps, whole, atol=EXACT, err_msg=suffix)


@every_position
@every_variant
def test_a_later_token_changes_nothing_earlier(variant, position):
    for suffix in SUFFIXED:
        plan = resolve(suffixed(variant, suffix), SIZE, position.turned)
        weights, x = drawn(plan), stream()
        changed = x.copy()
        # The last but one: with a masked diagonal the last one is seen by none.
        changed[-2] += 1
        before = reference.forward(plan, weights, x, causal=True, position=position)
        after = reference.forward(plan, weights, changed, causal=True, position=position)
        np.testing.assert_array_equal(after[:-2], before[:-2], err_msg=suffix)
        assert np.abs(after[-1] - before[-1]).max() > EXACT


@every_position
@every_variant
def test_a_value_is_the_same_at_every_position_unless_the_scheme_says_so(variant, position):
    plan = resolve(variant, SIZE, position.turned)
    weights, x = drawn(plan), stream()
    roots = reference.project(plan, weights, x)
    here = reference.make("v", plan, weights, roots, position, np.arange(TIME))
    there = reference.make("v", plan, weights, roots, position, np.arange(TIME) + 5)
    assert np.array_equal(here, there) == (not isinstance(position, RotaryWithInverse))


@every_suffix
@pytest.mark.parametrize("position", [NoPosition(), Rotary(), RotaryWithInverse(), Alibi()])
def test_what_is_attended_depends_on_distances_only_or_on_the_separable_form(position, suffix):
    plan = resolve(parse(f"q,k=v{suffix}"), SIZE, position.turned)
    weights, x = drawn(plan), stream()
    roots = reference.project(plan, weights, x)

    def seen(first):
        times = np.arange(TIME) + first
        q, k, v = (reference.make(r, plan, weights, roots, position, times) for r in "qkv")
        shift = reference.added(plan, weights, position, times, times, causal=True)
        rows = reference.attend(q, k, v, shift, weights)
        return reference.apply(plan.output, plan, weights, rows, position, times)

    moves = not np.allclose(seen(0), seen(31), atol=1e-9)
    assert moves == ("+2d" in suffix)


def test_the_2d_encoding_is_a_temperature_and_a_function_of_the_key():
    """A 1×1 convolution over score, row features and column features: softmax cancels the row."""
    plan = resolve(parse("q,k,v+2d"), SIZE)
    weights = drawn(plan)
    rng = np.random.default_rng(3)
    products = rng.normal(size=(SIZE.heads, TIME, TIME))
    times = np.arange(TIME)
    places = np.concatenate(
        [
            np.broadcast_to(reference.described(times)[:, None], (TIME, TIME, FEATURES)),
            np.broadcast_to(reference.described(times)[None], (TIME, TIME, FEATURES)),
        ],
        axis=-1,
    )
    of_rows, offset = rng.normal(size=FEATURES), rng.normal()
    kernel = np.concatenate([of_rows, weights["correction.features"]])
    convolved = weights["correction.temperature"] * products + places @ kernel + offset
    shift = reference.added(plan, weights, NoPosition(), times, times, causal=False)
    reduced = weights["correction.temperature"] * products + shift

    def softmax(scores):
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    np.testing.assert_allclose(softmax(convolved), softmax(reduced), atol=EXACT)
    assert np.abs(convolved - reduced).max() > 0.1


def _order_of_two(suffix):
    """How the share of the token before compares with that of the token after, when equal."""
    plan = resolve(parse(f"q,k,v{suffix}"), SIZE)
    weights = drawn(plan)
    alike = np.zeros((SIZE.heads, TIME, TIME))
    times = np.arange(TIME)
    shift = alike + reference.added(plan, weights, NoPosition(), times, times, causal=False)
    inner = range(1, TIME - 1)
    return np.array([shift[0, i, i - 1] - shift[0, i, i + 1] for i in inner])


def test_only_the_relative_form_can_tell_before_from_after_alike_at_every_place():
    assert np.abs(_order_of_two("")).max() == 0
    relative = _order_of_two("++")
    np.testing.assert_allclose(relative, relative[0], atol=EXACT)
    assert abs(relative[0]) > 0.1
    # The separable form prefers places, not sides.
    assert np.ptp(_order_of_two("+2d")) > 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_without_the_diagonal_a_token_sees_itself_only_where_it_sees_nothing_else(causal):
    plan = resolve(parse("q,k,v-diag"), SIZE)
    for time in (1, TIME):
        times = np.arange(time)
        shift = reference.added(plan, {}, NoPosition(), times, times, causal=causal)[0]
        on_itself = np.isfinite(np.diag(shift))
        expected = [(causal and place == 0) or time == 1 for place in times]
        np.testing.assert_array_equal(on_itself, expected)
        assert np.isfinite(shift).any(axis=1).all()


def test_alibi_falls_with_the_distance_by_halving_slopes_of_eight_heads():
    plan = resolve(parse("q,k,v"), sized(16, 8))
    times = np.arange(3)
    shift = reference.added(plan, {}, Alibi(), times, times, causal=False)
    np.testing.assert_allclose(shift[:, 0, 1], [-(2.0**-head) for head in range(1, 9)])
    np.testing.assert_allclose(shift[:, 0, 2], 2 * shift[:, 0, 1])


@every_suffix
def test_norm_and_scale_come_before_positions_and_a_tied_value_is_before_or_after_the_norm(suffix):
    plan = resolve(parse(f"q,k=v{suffix}"), SIZE, Rotary().turned)
    weights, x = drawn(plan), stream()
    roots = reference.project(plan, weights, x)
    value = reference.make("v", plan, weights, roots, Rotary(), np.arange(TIME))
    size = np.sqrt(np.mean(value**2, axis=-1))
    assert np.allclose(size, 1, atol=1e-5) == ("+qkvnorm" in suffix)
    assert len(plan.cached) == 1


@every_variant
def test_rotary_scores_depend_on_the_distance_only(variant):
    plan = resolve(variant, SIZE, Rotary().turned)
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


@pytest.mark.parametrize("suffix", ["", "+qkvnorm++-diag"])
@every_variant
def test_a_rotation_on_the_value_folds_into_the_output_projection(variant, suffix):
    variant = suffixed(variant, suffix)
    plan = resolve(variant, SIZE, Rotary().turned)
    weights, x = drawn(plan), stream()
    plain = resolve(without_value_rotation(variant), SIZE, Rotary().turned)
    turns = [op for op in plan.derivations["v"].ops if op not in plain.paths["v"].ops]
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
        plan = resolve(parse("q,k,v"), SIZE, position.turned)
        found = reference.forward(plan, weights, x, causal=False, position=position)
        np.testing.assert_allclose(found, expected, atol=EXACT)


def test_without_positions_or_a_mask_the_order_of_tokens_does_not_matter():
    plan = resolve(parse("q,k=v"), SIZE)
    weights, x = drawn(plan), stream()
    straight = reference.forward(plan, weights, x, causal=False, position=NoPosition())
    turned = reference.forward(plan, weights, x[::-1], causal=False, position=NoPosition())
    np.testing.assert_allclose(turned[::-1], straight, atol=EXACT)
