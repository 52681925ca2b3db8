"""The measures of an attention layer, by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from jaxtyping import Bool, Float

from qkvbench.analysis.attention import attention_entropy, diagonal_share
from qkvbench.analysis.rank import effective_rank
from qkvbench.analysis.similarity import (
    cosine,
    rotation_residual,
    subspace_overlap,
    unbiased_cka,
)
from qkvbench.analysis.symmetry import score_symmetry, symmetry
from qkvbench.variant import Role

# `_heads` is not checked, because roles may have different numbers of heads.
Projection = Float[np.ndarray, "_heads head_dim d_model"]
Projections = Float[np.ndarray, "samples _heads head_dim"]
Weights = Mapping[Role, Projection]


@dataclass(frozen=True)
class Layer:
    """The arrays of one attention layer on a batch.

    ``weights`` are the matrices from the stream to each role, without biases, norms and RoPE; the
    identity for the stream itself. ``projections`` are Q, K and V at every non-padding position,
    before RoPE. ``scores`` are Q·Kᵀ/sqrt(head_dim), after RoPE and before the mask;
    ``attention_weights`` are their softmax. ``mask`` is True for the keys that a query attends to;
    padding positions attend to none.
    """

    name: str
    weights: Weights
    projections: Mapping[Role, Projections]
    scores: Float[np.ndarray, "items heads time time"]
    attention_weights: Float[np.ndarray, "items heads time time"]
    mask: Bool[np.ndarray, "items time time"]


@dataclass(frozen=True)
class WeightMeasure:
    """A number computed from the weights of a layer; `roles` are those that it needs."""

    about: str
    roles: tuple[Role, ...]
    of: Callable[[Weights], float]


@dataclass(frozen=True)
class LayerMeasure:
    """A number computed from the arrays of a layer on a batch."""

    about: str
    of: Callable[[Layer], float]


def measure_layer(layer: Layer) -> dict[str, float]:
    """Every measure of the layer, by name; NaN if one does not apply.

    Heads of different widths are not compared.
    """
    arrays = [*layer.weights.values(), *layer.projections.values()]
    arrays += [layer.scores, layer.attention_weights]
    if not all(np.isfinite(each).all() for each in arrays):
        return dict.fromkeys((*WEIGHT_MEASURES, *LAYER_MEASURES), math.nan)
    on_batch = {name: measure.of(layer) for name, measure in LAYER_MEASURES.items()}
    return measure_weights(layer.weights) | on_batch


def measure_weights(weights: Weights) -> dict[str, float]:
    """Every measure of the weights, by name; NaN if a role that it needs has no matrix."""
    return {
        name: measure.of(weights) if weights.keys() >= set(measure.roles) else math.nan
        for name, measure in WEIGHT_MEASURES.items()
    }


def _by_head(
    compare: Callable[[np.ndarray, np.ndarray], float], first: Role, second: Role
) -> Callable[[Weights], float]:
    """The mean over heads of `compare` on their transposed weight matrices."""

    def of(weights: Weights) -> float:
        pairs = _paired(weights[first], weights[second])
        if pairs[0].shape != pairs[1].shape:
            return math.nan
        return fmean(compare(one.T, other.T) for one, other in zip(*pairs, strict=True))

    return of


def _projections_by_head(
    compare: Callable[[np.ndarray, np.ndarray], float], first: Role, second: Role
) -> Callable[[Layer], float]:
    """The mean over heads of `compare` on their projections."""

    def of(layer: Layer) -> float:
        pairs = _paired(*(layer.projections[role].swapaxes(0, 1) for role in (first, second)))
        if pairs[0].shape != pairs[1].shape:
            return math.nan
        return fmean(compare(one, other) for one, other in zip(*pairs, strict=True))

    return of


def _paired(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the same number of heads: a key/value head is repeated for its query heads."""
    heads = max(len(one), len(other))
    return one.repeat(heads // len(one), axis=0), other.repeat(heads // len(other), axis=0)


def _weight_rank(role: Role) -> Callable[[Weights], float]:
    return lambda weights: effective_rank(weights[role].reshape(-1, weights[role].shape[2]))


def _rank(role: Role) -> Callable[[Layer], float]:
    def of(layer: Layer) -> float:
        projections = layer.projections[role]
        # (samples, heads · head_dim)
        matrix = projections.reshape(len(projections), -1).astype(np.float64)
        # Centered, because softmax ignores a vector that is added to all keys.
        return effective_rank(matrix - matrix.mean(axis=0))

    return of


def _weight_symmetry(weights: Weights) -> float:
    pairs = _paired(weights["q"], weights["k"])
    # In cross-attention, queries and keys may be made from streams of different widths.
    if pairs[0].shape != pairs[1].shape:
        return math.nan
    return fmean(score_symmetry(query, key) for query, key in zip(*pairs, strict=True))


def _score_symmetry(layer: Layer) -> float:
    valid = np.any(layer.mask, axis=-1)  # (items, time)
    both = valid[:, :, None] & valid[:, None, :]
    return symmetry(layer.scores * both[:, None])


def _attention_symmetry(layer: Layer) -> float:
    # Under a causal mask one triangle is always zero, whatever the tokens are.
    if not (layer.mask == layer.mask.swapaxes(1, 2)).all():
        return math.nan
    return symmetry(layer.attention_weights * layer.mask[:, None])


WEIGHT_MEASURES: dict[str, WeightMeasure] = {
    "kv_weight_cosine": WeightMeasure(
        "cosine of W_K and W_V", ("k", "v"), _by_head(cosine, "k", "v")
    ),
    "kv_weight_cka": WeightMeasure(
        "unbiased linear CKA of W_K and W_V", ("k", "v"), _by_head(unbiased_cka, "k", "v")
    ),
    "kv_weight_overlap": WeightMeasure(
        "overlap of the row spaces of W_K and W_V",
        ("k", "v"),
        _by_head(subspace_overlap, "k", "v"),
    ),
    "kv_weight_residual": WeightMeasure(
        "residual of W_V after the best rotation of W_K",
        ("k", "v"),
        _by_head(rotation_residual, "k", "v"),
    ),
    "qk_weight_symmetry": WeightMeasure("symmetry of W_Qᵀ·W_K", ("q", "k"), _weight_symmetry),
    "q_weight_rank": WeightMeasure("effective rank of W_Q", ("q",), _weight_rank("q")),
    "k_weight_rank": WeightMeasure("effective rank of W_K", ("k",), _weight_rank("k")),
    "v_weight_rank": WeightMeasure("effective rank of W_V", ("v",), _weight_rank("v")),
}

LAYER_MEASURES: dict[str, LayerMeasure] = {
    "kv_cosine": LayerMeasure("cosine of K and V", _projections_by_head(cosine, "k", "v")),
    "kv_cka": LayerMeasure(
        "unbiased linear CKA of K and V", _projections_by_head(unbiased_cka, "k", "v")
    ),
    "kv_overlap": LayerMeasure(
        "overlap of the subspaces of K and V", _projections_by_head(subspace_overlap, "k", "v")
    ),
    "kv_residual": LayerMeasure(
        "residual of V after the best rotation of K",
        _projections_by_head(rotation_residual, "k", "v"),
    ),
    "q_rank": LayerMeasure("effective rank of Q", _rank("q")),
    "k_rank": LayerMeasure("effective rank of K", _rank("k")),
    "v_rank": LayerMeasure("effective rank of V", _rank("v")),
    "entropy": LayerMeasure(
        "entropy of the attention weights over its maximum",
        lambda layer: attention_entropy(layer.attention_weights, layer.mask[:, None]),
    ),
    "diagonal": LayerMeasure(
        "attention weight of a token on itself",
        lambda layer: diagonal_share(layer.attention_weights, layer.mask[:, None]),
    ),
    "score_symmetry": LayerMeasure("symmetry of Q·Kᵀ", _score_symmetry),
    "attention_symmetry": LayerMeasure("symmetry of the attention weights", _attention_symmetry),
}
