"""Measures have known values on identical, rotated, orthogonal and random matrices."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvbench.analysis import (
    attention_entropy,
    best_rotation,
    cosine,
    diagonal_share,
    effective_rank,
    find_layers,
    measure_weights,
    read_weights,
    rotation_residual,
    score_symmetry,
    subspace_overlap,
    symmetry,
    unbiased_cka,
)

SEEDS = st.integers(0, 2**16)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(seed, size):
    return np.linalg.qr(normal(seed, size, size))[0]


def test_a_matrix_is_wholly_similar_to_itself():
    matrix = normal(0, 41, 7).astype(np.float32)
    assert (cosine(matrix, matrix), unbiased_cka(matrix, matrix)) == (1.0, 1.0)
    assert rotation_residual(matrix, matrix) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(matrix, matrix) == pytest.approx(1)


def test_a_rotated_matrix_differs_in_its_numbers_and_in_nothing_else():
    matrix, turn = normal(0, 4000, 7), rotation(1, 7)
    rotated = matrix @ turn
    assert cosine(matrix, rotated) == pytest.approx(np.trace(turn) / 7, abs=0.03)
    assert unbiased_cka(matrix, rotated) == pytest.approx(1)
    assert rotation_residual(matrix, rotated) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(matrix, rotated) == pytest.approx(1)
    assert best_rotation(matrix, rotated) == pytest.approx(turn)


def test_orthogonal_subspaces_share_nothing():
    directions = rotation(0, 40)
    first, second = directions[:, :5] @ normal(1, 5, 5), directions[:, 5:10] @ normal(2, 5, 5)
    assert subspace_overlap(first, second) == pytest.approx(0, abs=1e-12)
    assert rotation_residual(first, second) == pytest.approx(1)
    assert cosine(first, second) == pytest.approx(0, abs=1e-12)


def test_a_known_angle_between_planes_is_found():
    first = np.eye(5)[:, :2]
    second = np.stack([np.eye(5)[0], [0, math.cos(0.3), math.sin(0.3), 0, 0]], axis=1)
    assert subspace_overlap(first, second) == pytest.approx((1 + math.cos(0.3) ** 2) / 2)


def test_a_space_inside_another_is_wholly_shared():
    matrix = normal(0, 30, 6)
    assert subspace_overlap(matrix, matrix @ normal(1, 6, 2)) == pytest.approx(1)


def test_directions_that_are_only_rounding_noise_are_no_part_of_a_space():
    basis, other = normal(0, 50, 2), normal(2, 50, 6).astype(np.float32)
    thin = (basis @ normal(1, 2, 6)).astype(np.float32)
    # With the rounding noise it would be a mean over six directions instead of two.
    assert subspace_overlap(thin, other) == pytest.approx(subspace_overlap(basis, other), abs=1e-5)


def test_measures_of_independent_matrices_have_their_expected_values():
    n, p = 600, 40
    pairs = [(normal(seed, n, p), normal(1000 + seed, n, p)) for seed in range(20)]
    means = {
        measure: np.mean([measure(*pair) for pair in pairs])
        for measure in (cosine, unbiased_cka, subspace_overlap, rotation_residual)
    }
    # The spread of a mean of twenty is far below each of these tolerances.
    assert means[cosine] == pytest.approx(0, abs=0.01)
    assert means[unbiased_cka] == pytest.approx(0, abs=0.005)
    assert means[subspace_overlap] == pytest.approx(p / n, rel=0.03)
    assert means[rotation_residual] == pytest.approx(
        1 - (8 / (3 * math.pi)) ** 2 * p / n, abs=0.005
    )


def test_few_samples_do_not_bias_the_unbiased_cka():
    pairs = [(normal(seed, 12, 30), normal(1000 + seed, 12, 30)) for seed in range(200)]
    assert np.mean([unbiased_cka(*pair) for pair in pairs]) == pytest.approx(0, abs=0.02)


def test_the_unbiased_cka_agrees_with_its_formula():
    x, y = normal(0, 9, 4), normal(1, 9, 6)

    def hsic(one, other):
        n = len(one)
        k, m = one @ one.T, other @ other.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        ones = np.ones(n)
        whole = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (whole - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert unbiased_cka(x, y) == pytest.approx(expected)


@given(SEEDS, st.floats(0.01, 100))
def test_cka_sees_no_rotation_no_scale_and_no_shift(seed, scale):
    x, y = normal(seed, 23, 5), normal(seed + 1, 23, 7)
    changed = scale * y @ rotation(seed, 7) + normal(seed, 7)
    assert unbiased_cka(x, changed) == pytest.approx(unbiased_cka(x, y), abs=1e-9)
    assert unbiased_cka(y, x) == pytest.approx(unbiased_cka(x, y))


@given(SEEDS, st.floats(0.01, 100))
def test_overlaps_see_no_invertible_map_and_residuals_no_rotation_or_scale(seed, scale):
    x, y = normal(seed, 23, 5), normal(seed + 1, 23, 5)
    mixed = y @ (normal(seed, 5, 5) + 4 * np.eye(5))
    assert subspace_overlap(x, mixed) == pytest.approx(subspace_overlap(x, y), abs=1e-6)
    turned = scale * y @ rotation(seed, 5)
    assert rotation_residual(x, turned) == pytest.approx(rotation_residual(x, y))
    assert rotation_residual(y, x) == pytest.approx(rotation_residual(x, y))


@given(SEEDS)
def test_no_rotation_comes_nearer_than_the_best(seed):
    x, y = normal(seed, 23, 4), normal(seed + 1, 23, 4)
    best = np.linalg.norm(x @ best_rotation(x, y) - y)
    assert best <= np.linalg.norm(x @ rotation(seed + 2, 4) - y) + 1e-12


def test_a_matrix_of_zeros_is_similar_to_nothing():
    nothing, matrix = np.zeros((9, 3)), normal(0, 9, 3)
    for measure in (cosine, unbiased_cka, rotation_residual, subspace_overlap):
        assert math.isnan(measure(nothing, matrix))
    assert math.isnan(effective_rank(nothing))
    assert math.isnan(symmetry(np.zeros((3, 3))))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank):
    matrix = rotation(0, 11)[:, :rank] @ rotation(1, 7)[:rank]
    assert effective_rank(matrix) == pytest.approx(rank)


def test_the_effective_rank_follows_its_definition_and_no_scale():
    turned = rotation(0, 2) @ np.diag([3.0, 1.0]) @ rotation(1, 2)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(turned) == pytest.approx(expected)
    assert effective_rank(1e-6 * turned) == pytest.approx(expected)


def causal(size):
    return np.tril(np.ones((size, size), dtype=bool))


def test_uniform_attention_has_all_the_entropy_that_is_visible():
    mask = causal(6)
    weights = mask / mask.sum(axis=1, keepdims=True)
    assert attention_entropy(weights, mask) == pytest.approx(1)
    assert diagonal_share(weights, mask) == pytest.approx(np.mean([1 / n for n in range(2, 7)]))
    everywhere = np.ones((6, 6), dtype=bool)
    assert attention_entropy(np.full((2, 3, 6, 6), 1 / 6), everywhere) == pytest.approx(1)


def test_attention_to_oneself_has_no_entropy_and_the_whole_diagonal():
    for mask in (causal(5), np.ones((5, 5), dtype=bool)):
        assert attention_entropy(np.eye(5), mask) == 0
        assert diagonal_share(np.eye(5), mask) == 1


def test_half_the_keys_alike_have_half_the_entropy():
    weights = np.zeros((16, 16))
    weights[:, :4] = 1 / 4
    assert attention_entropy(weights, np.ones((16, 16), dtype=bool)) == pytest.approx(0.5)


def test_queries_without_a_choice_count_for_nothing():
    weights = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])
    mask = np.array([[True, False, False], [True, True, False], [False, False, False]])
    assert attention_entropy(weights, mask) == pytest.approx(1)
    assert diagonal_share(weights, mask) == 0.5
    assert math.isnan(attention_entropy(weights[:1], mask[:1]))


def test_symmetry_is_1_of_symmetric_matrices_and_the_opposite_of_antisymmetric_ones():
    matrix = normal(0, 9, 9)
    assert symmetry(matrix + matrix.T) == pytest.approx(1)
    assert symmetry(matrix - matrix.T) == pytest.approx(-1)
    assert symmetry(np.tril(matrix, -1)) == 0
    assert symmetry(normal(1, 400, 30, 30)) == pytest.approx(1 / 30, abs=0.01)


@given(SEEDS)
def test_the_symmetry_of_scores_is_that_of_the_matrix_that_is_never_made(seed):
    query, key = normal(seed, 3, 11), normal(seed + 1, 3, 11)
    assert score_symmetry(query, key) == pytest.approx(symmetry(query.T @ key))
    assert score_symmetry(query, query) == pytest.approx(1)


NAMES = {
    "Llama": "model.layers.{}.self_attn.{}_proj.weight",
    "BERT": "encoder.layer.{}.attention.self.{}.weight",
    "DistilBERT": "transformer.layer.{}.attention.{}_lin.weight",
    "T5": "encoder.block.{}.layer.0.SelfAttention.{}.weight",
    "this bench": "blocks.{}.attention.{}.weight",
}
WORDS = {"BERT": {"q": "query", "k": "key", "v": "value"}}


@pytest.mark.parametrize("family", NAMES)
def test_the_projections_of_usual_checkpoints_are_found_by_name(family):
    words = WORDS.get(family, {role: role for role in "qkv"})
    tensors = {
        NAMES[family].format(layer, word): normal(layer, 12 if role == "q" else 6, 10)
        for layer in (0, 2, 10)
        for role, word in words.items()
    }
    others = ["embed.weight", "blocks.0.attention.o.weight", "blocks.0.attention.q.bias"]
    layers = find_layers([*sorted(tensors), *others])
    assert [layer.tensors["q"] for layer in layers] == [
        NAMES[family].format(layer, words["q"]) for layer in (0, 2, 10)
    ]
    weights = read_weights(layers[1], tensors.__getitem__, heads=4)
    assert {role: matrix.shape for role, matrix in weights.items()} == {
        "q": (4, 3, 10),
        "k": (2, 3, 10),
        "v": (2, 3, 10),
    }


@pytest.mark.parametrize(
    ("name", "stored"), [("h.0.attn.c_attn.weight", np.transpose), ("a.qkv_proj.weight", np.array)]
)
def test_a_fused_matrix_is_split_into_its_roles_in_either_orientation(name, stored):
    q, k, v = (normal(seed, 12, 12) for seed in range(3))
    fused = stored(np.concatenate([q, k, v]))
    (layer,) = find_layers([name, name.replace("weight", "bias")])
    weights = read_weights(layer, {name: fused}.__getitem__, heads=4)
    assert np.array_equal(weights["k"].reshape(12, 12), k)
    assert np.array_equal(weights["v"].reshape(12, 12), v)
    assert np.array_equal(weights["q"].reshape(12, 12), q)


def test_a_fused_matrix_has_as_many_key_heads_as_one_says():
    fused = normal(0, (4 + 2 * 2) * 3, 12)
    (layer,) = find_layers(["a.qkv_proj.weight"])
    weights = read_weights(layer, {"a.qkv_proj.weight": fused}.__getitem__, heads=4, kv_heads=2)
    assert weights["k"].shape == (2, 3, 12)
    assert np.array_equal(weights["v"].reshape(6, 12), fused[-6:])


def test_a_role_without_a_matrix_leaves_its_measures_empty():
    names = {f"blocks.0.attention.{role}.weight": normal(1, 8, 8) for role in "qk"}
    (layer,) = find_layers(names)
    found = measure_weights(read_weights(layer, names.__getitem__, heads=2))
    assert math.isnan(found["kv_weight_cka"])
    assert math.isfinite(found["qk_weight_symmetry"])


@pytest.mark.parametrize("heads", [{"heads": 5}, {"heads": 4, "kv_heads": 4}])
def test_heads_that_do_not_fit_are_refused_with_the_sizes(heads):
    names = {f"a.{role}_proj.weight": normal(1, 12 if role == "q" else 6, 8) for role in "qkv"}
    (layer,) = find_layers(names)
    with pytest.raises(ValueError, match=r"12 rows|\(6, 8\)|6 rows"):
        read_weights(layer, names.__getitem__, **heads)
