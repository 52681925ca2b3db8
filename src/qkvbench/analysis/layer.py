"""One attention layer in a few numbers: which there are, and how each is computed."""

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

# `_heads` is checked for nothing: roles may differ in it.
Projection = Float[np.ndarray, "_heads head_dim d_model"]
Rows = Float[np.ndarray, "samples _heads head_dim"]
Weights = Mapping[Role, Projection]


@dataclass(frozen=True)
class Layer:
    """What one layer makes of a batch.

    ``weights`` make each role from the stream, without offsets, norms and positions; the stream
    itself is made by the identity. ``rows`` are Q, K and V at every position that is read, before
    positions turn them. ``scores`` are Q·Kᵀ/sqrt(head_dim), after positions and before any mask;
    ``shares`` are what softmax makes of them. ``seen`` says which keys a query sees; a position
    that is not read sees none.
    """

    name: str
    weights: Weights
    rows: Mapping[Role, Rows]
    scores: Float[np.ndarray, "items heads time time"]
    shares: Float[np.ndarray, "items heads time time"]
    seen: Bool[np.ndarray, "items time time"]


@dataclass(frozen=True)
class WeightMeasure:
    """One number on the weights of a layer; `roles` are those that it needs."""

    about: str
    roles: tuple[Role, ...]
    of: Callable[[Weights], float]


@dataclass(frozen=True)
class LayerMeasure:
    """One number on what a layer makes of a batch."""

    about: str
    of: Callable[[Layer], float]


def measured(layer: Layer) -> dict[str, float]:
    """Every measure of the layer, by name; NaN where one does not apply."""
    numbers = (*layer.weights.values(), *layer.rows.values(), layer.scores, layer.shares)
    if not all(np.isfinite(each).all() for each in numbers):
        return dict.fromkeys((*WEIGHT_MEASURES, *LAYER_MEASURES), math.nan)
    found = {name: measure.of(layer) for name, measure in LAYER_MEASURES.items()}
    return measured_weights(layer.weights) | found


def measured_weights(weights: Weights) -> dict[str, float]:
    """Every measure of the weights, by name; NaN where a role that it needs has no matrix."""
    return {
        name: measure.of(weights) if weights.keys() >= set(measure.roles) else math.nan
        for name, measure in WEIGHT_MEASURES.items()
    }


def _by_head(
    compare: Callable[[np.ndarray, np.ndarray], float], first: Role, second: Role
) -> Callable[[Weights], float]:
    """The mean over heads of what `compare` says of their projections, transposed."""

    def of(weights: Weights) -> float:
        pairs = _paired(weights[first], weights[second])
        return fmean(compare(one.T, other.T) for one, other in zip(*pairs, strict=True))

    return of


def _rows_by_head(
    compare: Callable[[np.ndarray, np.ndarray], float], first: Role, second: Role
) -> Callable[[Layer], float]:
    """The mean over heads of what `compare` says of their rows."""

    def of(layer: Layer) -> float:
        pairs = _paired(*(layer.rows[role].swapaxes(0, 1) for role in (first, second)))
        return fmean(compare(one, other) for one, other in zip(*pairs, strict=True))

    return of


def _paired(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with as many heads: a key/value head stands beside each query head of its group."""
    heads = max(len(one), len(other))
    return one.repeat(heads // len(one), axis=0), other.repeat(heads // len(other), axis=0)


def _weight_rank(role: Role) -> Callable[[Weights], float]:
    return lambda weights: effective_rank(weights[role].reshape(-1, weights[role].shape[2]))


def _rank(role: Role) -> Callable[[Layer], float]:
    def of(layer: Layer) -> float:
        rows = layer.rows[role].reshape(len(layer.rows[role]), -1).astype(np.float64)
        # About the mean: the same vector added to all keys changes no share.
        return effective_rank(rows - rows.mean(axis=0))

    return of


def _weight_symmetry(weights: Weights) -> float:
    pairs = _paired(weights["q"], weights["k"])
    return fmean(score_symmetry(query, key) for query, key in zip(*pairs, strict=True))


def _score_symmetry(layer: Layer) -> float:
    read = np.any(layer.seen, axis=-1)
    both = read[:, :, None] & read[:, None, :]
    return symmetry(layer.scores * both[:, None])


def _attention_symmetry(layer: Layer) -> float:
    # Behind a causal mask one side is always empty, which says nothing about the tokens.
    if not (layer.seen == layer.seen.swapaxes(1, 2)).all():
        return math.nan
    return symmetry(layer.shares * layer.seen[:, None])


WEIGHT_MEASURES: dict[str, WeightMeasure] = {
    "kv_weight_cosine": WeightMeasure(
        "cosine of W_K and W_V", ("k", "v"), _by_head(cosine, "k", "v")
    ),
    "kv_weight_cka": WeightMeasure(
        "unbiased linear CKA of W_K and W_V", ("k", "v"), _by_head(unbiased_cka, "k", "v")
    ),
    "kv_weight_overlap": WeightMeasure(
        "overlap of the subspaces of the stream that W_K and W_V read",
        ("k", "v"),
        _by_head(subspace_overlap, "k", "v"),
    ),
    "kv_weight_residual": WeightMeasure(
        "what the best rotation of W_K leaves of W_V",
        ("k", "v"),
        _by_head(rotation_residual, "k", "v"),
    ),
    "qk_weight_symmetry": WeightMeasure("symmetry of W_Qᵀ·W_K", ("q", "k"), _weight_symmetry),
    "q_weight_rank": WeightMeasure("effective rank of W_Q", ("q",), _weight_rank("q")),
    "k_weight_rank": WeightMeasure("effective rank of W_K", ("k",), _weight_rank("k")),
    "v_weight_rank": WeightMeasure("effective rank of W_V", ("v",), _weight_rank("v")),
}

LAYER_MEASURES: dict[str, LayerMeasure] = {
    "kv_cosine": LayerMeasure("cosine of K and V", _rows_by_head(cosine, "k", "v")),
    "kv_cka": LayerMeasure("unbiased linear CKA of K and V", _rows_by_head(unbiased_cka, "k", "v")),
    "kv_overlap": LayerMeasure(
        "overlap of the subspaces of K and V", _rows_by_head(subspace_overlap, "k", "v")
    ),
    "kv_residual": LayerMeasure(
        "what the best rotation of K leaves of V", _rows_by_head(rotation_residual, "k", "v")
    ),
    "q_rank": LayerMeasure("effective rank of Q", _rank("q")),
    "k_rank": LayerMeasure("effective rank of K", _rank("k")),
    "v_rank": LayerMeasure("effective rank of V", _rank("v")),
    "entropy": LayerMeasure(
        "entropy of attention over the most that is possible",
        lambda layer: attention_entropy(layer.shares, layer.seen[:, None]),
    ),
    "diagonal": LayerMeasure(
        "share that a token gives to itself",
        lambda layer: diagonal_share(layer.shares, layer.seen[:, None]),
    ),
    "score_symmetry": LayerMeasure("symmetry of Q·Kᵀ", _score_symmetry),
    "attention_symmetry": LayerMeasure("symmetry of the shares", _attention_symmetry),
}
