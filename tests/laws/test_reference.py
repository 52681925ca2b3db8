"""The NumPy reference, which every backend is held against, obeys the laws itself."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from laws.cases import (
    ALONE,
    EVEN,
    SCHEMES,
    SIZE,
    TIME,
    covering,
    drawn,
    every_case,
    every_position,
    every_variant,
    plan_of,
    rotary,
    streams,
)
from qkvbench import reference
from qkvbench.model import Alibi, NoPosition, Rotary, RotaryWithInverse
from qkvbench.variant import (
    FEATURES,
    ROLES,
    ApplyRope,
    Zeros,
    parse,
    resolve,
    sized,
    without_value_rotation,
)

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
ROWS = np.arange(TIME)

every_suffix = pytest.mark.parametrize("suffix", ALONE)


def role_of(role, plan, weights, roots, positions):
    """Q, K or V, from its root."""
    return reference.make(plan.derivations[role], plan, weights, roots, positions)


def _setup(plan):
    return drawn(plan.parameters), streams(d_model=plan.geometry.d_model)[0]


@every_case("variant", "position", "suffix")
def test_decoding_over_cached_roots_is_attention_over_the_whole(case):
    plan = case.plan()
    weights, x = _setup(plan)
    steps = reference.decode(plan, weights, x)
    np.testing.assert_allclose(steps, reference.forward(plan, weights, x), atol=EXACT)


@every_case("variant", "position", "suffix", share=2)
def test_a_later_token_changes_nothing_earlier(case):
    plan = case.plan()
    weights, x = _setup(plan)
    changed = x.copy()
    # The last but one: with a masked diagonal no token sees the last one.
    changed[-2] += 1
    before, after = (reference.forward(plan, weights, each) for each in (x, changed))
    np.testing.assert_array_equal(after[:-2], before[:-2])
    # Under a window of 1 without the diagonal every token may see nothing but the sinks; and of a
    # token that sees only itself nothing is left without the part along its own V.
    visible = plan.mask.visible(ROWS, ROWS)
    others = np.delete(visible[-2], -2)
    # With one visible key the query still decides how much of it a sink logit leaves.
    chooses = plan.scores.sink_logit and case.variant.q != Zeros()
    query = visible[-2].sum() > 1 or plan.exclusive or plan.gate or chooses
    reads_it = visible[-1, -2] or bool(others.any() and query)
    reads_it |= visible[-2, -2] and not (plan.exclusive and not others.any())
    assert (np.abs(after[-2:] - before[-2:]).max() > EXACT) == reads_it


def test_a_value_is_the_same_at_every_position_unless_the_scheme_rotates_it():
    for case in covering("variant", "position"):
        plan = case.plan()
        weights, x = _setup(plan)
        roots = reference.project(plan, weights, x)
        here, there = (role_of("v", plan, weights, roots, ROWS + first) for first in (0, 5))
        rotated = isinstance(case.position, RotaryWithInverse)
        assert np.array_equal(here, there) == (not rotated), case


@every_case("position", "suffix", "mask", nightly=0)
def test_attention_depends_on_distances_only_unless_its_bias_is_separable(case):
    # The numbers of a head that RoPE rotated may be above 0 or below.
    variant = parse(f"q,k=v{case.suffix}")
    if variant.scores.linear:
        return
    # Sinks are positions of their own, and so are global tokens and the ends of chunks and blocks.
    scores = replace(variant.scores, sinks=0, global_tokens=0, chunk=None, blocks=None)
    variant = replace(variant, scores=scores)
    plan = plan_of(variant, case.position, causal=case.mask == "causal")
    weights, x = _setup(plan)
    roots = reference.project(plan, weights, x)

    def context(first):
        positions = ROWS + first
        q, k, v = (role_of(role, plan, weights, roots, positions) for role in ROLES)
        shift = reference.bias(plan, weights, positions, positions)
        rows = reference.attend(plan, weights, q, k, v, shift)
        return reference.apply(plan.output_ops, plan, weights, rows, positions)

    moves = not np.allclose(context(0), context(31), atol=1e-9)
    # A scale of coordinates does not commute with RoPE.
    late = variant.scores.norm.after_rope and plan.rope is not None
    late |= ApplyRope() in plan.derivations["v"].ops and not plan.output_ops
    assert not moves or "+2d" in case.suffix or late
    if "+2d" in case.suffix and "window1" not in case.suffix:
        assert moves


def test_the_2d_encoding_is_a_temperature_and_a_function_of_the_key():
    """A 1×1 convolution over score, row features and column features: softmax cancels the row."""
    plan = plan_of("q,k,v+2d", causal=False)
    weights = drawn(plan.parameters)
    rng = np.random.default_rng(3)
    products = rng.normal(size=(SIZE.heads, TIME, TIME))
    features = reference.position_features(ROWS)
    shape = (TIME, TIME, FEATURES)
    places = np.concatenate(
        [np.broadcast_to(features[:, None], shape), np.broadcast_to(features, shape)], axis=-1
    )
    of_rows, offset = rng.normal(size=FEATURES), rng.normal()
    kernel = np.concatenate([of_rows, weights["correction.features"]])
    convolved = weights["correction.temperature"] * products + places @ kernel + offset
    shift = reference.bias(plan, weights, ROWS, ROWS)
    reduced = weights["correction.temperature"] * products + shift

    def softmax(scores):
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    np.testing.assert_allclose(softmax(convolved), softmax(reduced), atol=EXACT)
    assert np.abs(convolved - reduced).max() > 0.1


def _bias_of_both_neighbours(suffix):
    """The bias of the token before minus that of the token after, at each inner place."""
    plan = plan_of(f"q,k,v{suffix}", causal=False)
    weights = {each.name: np.ones(each.shape) for each in plan.parameters}
    shift = reference.bias(plan, weights, ROWS, ROWS)[0]
    return np.array([shift[i, i - 1] - shift[i, i + 1] for i in range(1, TIME - 1)])


def test_only_the_relative_bias_prefers_a_side_alike_at_every_place():
    assert np.abs(_bias_of_both_neighbours("")).max() == 0
    relative = _bias_of_both_neighbours("++")
    np.testing.assert_allclose(relative, relative[0], atol=EXACT)
    assert abs(relative[0]) > 0.1
    # The separable form prefers places, not sides.
    assert np.ptp(_bias_of_both_neighbours("+2d")) > 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_without_the_diagonal_a_token_sees_itself_only_if_it_sees_nothing_else(causal):
    plan = plan_of("q,k,v-diag", causal=causal)
    for time in (1, TIME):
        rows = np.arange(time)
        shift = reference.bias(plan, {}, rows, rows)[0]
        expected = [(causal and row == 0) or time == 1 for row in rows]
        np.testing.assert_array_equal(np.isfinite(np.diag(shift)), expected)
        assert np.isfinite(shift).any(axis=1).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (3, 0), (3, 2), (TIME, 1)])
def test_a_query_sees_a_window_around_it_and_the_sinks(window, sinks, causal):
    suffix = f"+window{window}" + (f"+sinks{sinks}" if sinks else "")
    plan = plan_of(f"q,k,v{suffix}", causal=causal)
    shift = reference.bias(plan, {}, ROWS, ROWS)[0]
    expected = [
        [(abs(i - j) < window or j < sinks) and (j <= i or not causal) for j in ROWS] for i in ROWS
    ]
    np.testing.assert_array_equal(np.isfinite(shift), expected)
    assert np.isfinite(shift).sum(axis=1).max() <= plan.mask.max_keys(TIME)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, TIME + 2])
def test_a_query_sees_its_own_chunk(chunk, causal):
    plan = plan_of(f"q,k,v+chunk{chunk}", causal=causal)
    visible = plan.mask.visible(ROWS, ROWS)
    expected = [[i // chunk == j // chunk and (j <= i or not causal) for j in ROWS] for i in ROWS]
    np.testing.assert_array_equal(visible, expected)
    assert visible.sum(axis=1).max() == plan.mask.max_keys(TIME)
    for first, end in combinations(range(TIME + 1), 2):
        shown = np.flatnonzero(visible[first:end].any(axis=0))
        assert plan.mask.keys_of(first, end, TIME) == [slice(shown[0], shown[-1] + 1)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("size", "every"), [(1, 3), (1, 4), (2, 3), (3, 3), (4, 8)])
def test_a_query_sees_its_block_its_neighbours_and_some_of_the_others(size, every, causal):
    plan = plan_of(f"q,k,v+blocks{size}x{every}", causal=causal)
    tokens = 29
    rows = np.arange(tokens)
    visible = plan.mask.visible(rows, rows)
    expected = [
        [
            (abs(i // size - j // size) <= 1 or (j // size) % every == 0) and (j <= i or not causal)
            for j in rows
        ]
        for i in rows
    ]
    np.testing.assert_array_equal(visible, expected)
    # The rows of a block see together what the last of them sees.
    ends = [*range(size - 1, tokens, size), tokens - 1]
    by_block = [keys for _, keys in plan.mask.keys_by_block(tokens)]
    assert by_block == list(visible[ends[: len(by_block)]].sum(axis=1))
    assert plan.mask.max_keys(tokens) == max(by_block)
    assert sum(each for each, _ in plan.mask.keys_by_block(tokens)) == tokens
    for first, end in combinations(range(tokens + 1), 2):
        parts = plan.mask.keys_of(first, end, tokens)
        read = [column for part in parts for column in rows[part]]
        assert read == sorted(set(read))
        assert set(np.flatnonzero(visible[first:end].any(axis=0))) <= set(read)
        # Of a block that is not near nothing is read unless it is seen.
        assert all(
            (column // size) % every == 0 for part in parts[:-1] for column in rows[part]
        ) or (not causal)


@pytest.mark.parametrize("suffix", ["ropellama3x512", "ropeyarn3x512", "ropeyarnexact3x512"])
def test_scaled_frequencies_keep_fast_pairs_divide_slow_ones_and_mix_between(suffix):
    plan = plan_of(f"q,k,v+{suffix}", Rotary(), size=sized(48, 2))
    ratios = np.divide(plan.rope.frequencies, replace(plan.rope, scaling=None).frequencies)
    assert ratios[0] == 1
    assert ratios[-1] == pytest.approx(1 / 3)
    assert (np.diff(ratios) <= 0).all()
    assert ((ratios < 0.9) & (ratios > 0.4)).any()


def test_yarn_makes_scores_larger_by_its_factor_squared():
    plain, scaled = (plan_of(f"q,k,v+ropeyarn8x64{end}", Rotary()) for end in ("x1", ""))
    weights, x = _setup(plain)
    roots = reference.project(plain, weights, x)
    q, louder = (role_of("q", plan, weights, roots, ROWS) for plan in (plain, scaled))
    np.testing.assert_allclose(louder, (0.1 * np.log(8) + 1) ** 2 * q)


def test_alibi_falls_with_the_distance_by_halving_slopes_of_eight_heads():
    plan = plan_of("q,k,v", Alibi(), causal=False, size=sized(16, 8))
    shift = reference.bias(plan, {}, np.arange(3), np.arange(3))
    np.testing.assert_allclose(shift[:, 0, 1], [-(2.0**-head) for head in range(1, 9)])
    np.testing.assert_allclose(shift[:, 0, 2], 2 * shift[:, 0, 1])


@every_suffix
def test_a_tied_value_is_normed_only_if_all_three_roles_are(suffix):
    plan = plan_of(f"q,k=v{suffix}", Rotary())
    weights, x = _setup(plan)
    value = role_of("v", plan, weights, reference.project(plan, weights, x), ROWS)
    size = np.sqrt(np.mean(value**2, axis=-1))
    assert np.allclose(size, 1, atol=1e-4) == ("+qkvnorm" in suffix)
    assert len(plan.cached) == (0 if plan.state else 1 + bool(plan.rope_head))


@every_variant
def test_rotary_scores_depend_on_the_distance_only(variant):
    plan = plan_of(variant, Rotary())
    weights, x = _setup(plan)
    roots = reference.project(plan, weights, x)

    def scores(first):
        q, k = (role_of(role, plan, weights, roots, ROWS + first) for role in ("q", "k"))
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        return np.einsum("qhd,khd->hqk", q, k)

    np.testing.assert_allclose(scores(0), scores(31), atol=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_rotation_is_orthogonal_and_keeps_orientation(heads):
    matrices = reference.rotation(np.random.default_rng(2).normal(size=(heads, 10)), 5)
    identity = np.stack([np.eye(5)] * heads)
    np.testing.assert_allclose(matrices @ np.swapaxes(matrices, 1, 2), identity, atol=EXACT)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=EXACT)


@every_case("variant", "suffix", nightly=0)
def test_a_learned_map_on_the_value_folds_into_the_output_projection(case):
    position = rotary(case.full)
    plan, plain = (
        plan_of(each, position) for each in (case.full, without_value_rotation(case.full))
    )
    weights, x = _setup(plan)
    maps = [op for op in plan.derivations["v"].ops if op not in plain.derivations["v"].ops]
    folded = dict(weights)
    group = SIZE.heads // plan.heads("v")
    low_rank = plan.scores.output_rank
    groups, first = (low_rank.groups, "o.down") if low_rank else (1, "o.weight")
    columns = weights[first].reshape(groups, -1, SIZE.heads // groups, plan.width("v"))
    for op in reversed(maps):
        matrix = np.repeat(reference.head_map(op, plan, weights), group, axis=0)
        of_groups = matrix.reshape(groups, -1, *matrix.shape[1:])
        columns = np.einsum("grhe,ghed->grhd", columns, of_groups)
    folded[first] = columns.reshape(weights[first].shape)
    np.testing.assert_allclose(
        reference.forward(plain, folded, x), reference.forward(plan, weights, x), atol=EXACT
    )


def test_latents_for_two_halves_of_the_heads_are_two_layers_side_by_side():
    """GLA with two latents and one head with RoPE for all: arXiv:2505.21487."""
    plan, half = (
        plan_of(f"q,k=L({n}5),v=L({n}5)+latentnorm+ropehead6", Rotary(), size=size)
        for n, size in (("2x", EVEN), ("", sized(EVEN.d_model, 2, head_dim=EVEN.head_dim)))
    )
    weights, x = _setup(plan)

    def of_half(name, value):
        match name:
            case "kr.weight" | "kr.bias":
                return value, value
            case "o.weight":
                return np.split(value, 2, axis=1)
            case "o.bias":
                return value / 2, value / 2
            case "c.scale":
                return value
            case _:
                return np.split(value, 2)

    found = 0
    for number in range(2):
        own = {name: of_half(name, value)[number] for name, value in weights.items()}
        found = found + reference.forward(half, own, x)
    np.testing.assert_allclose(found, reference.forward(plan, weights, x), atol=EXACT)
    assert [(each.heads, each.width) for each in plan.cached] == [(2, 5), (1, 6)]


def test_without_keys_of_its_own_a_query_is_compared_with_a_matrix_times_v():
    """q·R·v with any R, over a cache of V alone: arXiv:2606.21848."""
    plan = plan_of("q,k=M(v),v", causal=False)
    weights, x = _setup(plan)
    q, v = (
        (x @ weights[f"{role}.weight"].T + weights[f"{role}.bias"]).reshape(TIME, SIZE.heads, -1)
        for role in "qv"
    )
    scores = np.einsum("qhe,hed,khd->hqk", q, weights["k.map"], v) / np.sqrt(SIZE.head_dim)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    context = np.einsum("hqk,khd->qhd", shares, v).reshape(TIME, -1)
    expected = context @ weights["o.weight"].T + weights["o.bias"]
    np.testing.assert_allclose(reference.forward(plan, weights, x), expected, atol=EXACT)
    (cached,) = plan.cached
    assert (cached.name, cached.derivation.ops) == ("v", ())


@every_position
def test_k_from_v_by_any_matrix_is_v_from_k_by_its_inverse(position):
    if isinstance(position, RotaryWithInverse):
        # RoPE on V does not commute with a matrix.
        return
    from_value, from_key = (plan_of(each, position) for each in ("q,k=M(v),v", "q,k,v=M(k)"))
    weights, x = _setup(from_value)
    other = {name: value for name, value in weights.items() if name not in ("v.bias", "k.map")}
    root = other.pop("v.weight").reshape(SIZE.heads, SIZE.head_dim, -1)
    bias = weights["v.bias"].reshape(SIZE.heads, SIZE.head_dim)
    other["k.weight"] = np.einsum("hed,hdm->hem", weights["k.map"], root).reshape(-1, SIZE.d_model)
    other["k.bias"] = np.einsum("hed,hd->he", weights["k.map"], bias).ravel()
    other["v.map"] = np.linalg.inv(weights["k.map"])
    found, expected = (
        reference.forward(plan, own, x) for plan, own in ((from_key, other), (from_value, weights))
    )
    # Entries of the inverse are tens.
    np.testing.assert_allclose(found, expected, atol=100 * EXACT)


@every_position
def test_one_token_that_sees_only_itself_gives_its_projected_value(position):
    plan = plan_of("q,k,v", position, causal=False)
    weights = drawn(plan.parameters)
    x = streams(time=1)[0]
    value = x @ weights["v.weight"].T + weights["v.bias"]
    expected = value @ weights["o.weight"].T + weights["o.bias"]
    np.testing.assert_allclose(reference.forward(plan, weights, x), expected, atol=EXACT)


def test_without_positions_or_a_mask_the_order_of_tokens_does_not_matter():
    plan = plan_of("q,k=v", NoPosition(), causal=False)
    weights, x = _setup(plan)
    straight, reversed_ = (reference.forward(plan, weights, each) for each in (x, x[::-1]))
    np.testing.assert_allclose(reversed_[::-1], straight, atol=EXACT)


@every_variant
def test_cached_values_are_the_numbers_of_the_cached_roots(variant):
    plan = resolve(variant, SIZE)
    weights, x = _setup(plan)
    roots = reference.project(plan, weights, x)
    for tensor in plan.cached:
        rows = roots[tensor.derivation.root]
        made = reference.apply(tensor.derivation.ops, plan, weights, rows, ROWS)
        assert made.shape == (TIME, tensor.heads, tensor.width)


@pytest.mark.parametrize("text", ["q,k,v+window1-own", "q,k,v+ropevalue+window1-own", "q,k=v-own"])
def test_of_a_token_that_sees_itself_alone_nothing_is_left_without_its_own_part(text):
    """With RoPE on V as well, whatever the position."""
    for position in SCHEMES:
        try:
            plan = plan_of(text, position)
        except ValueError:
            continue
        weights, x = _setup(plan)
        found = reference.forward(plan, weights, x) - weights.get("o.bias", 0.0)
        rows = found if "window1" in text else found[:1]
        np.testing.assert_allclose(rows, 0, atol=EXACT)
