"""Measures of the Q, K, V and attention weights of a layer, to explain results.

The functions take NumPy arrays, from a run of this project or from any checkpoint.
"""

from qkvbench.analysis.attention import attention_entropy, diagonal_share
from qkvbench.analysis.checkpoint import HeadsError, LayerNames, find_layers, read_weights
from qkvbench.analysis.layer import (
    LAYER_MEASURES,
    WEIGHT_MEASURES,
    Layer,
    LayerMeasure,
    WeightMeasure,
    Weights,
    measure_layer,
    measure_weights,
)
from qkvbench.analysis.rank import effective_rank
from qkvbench.analysis.similarity import (
    best_rotation,
    cosine,
    rotation_residual,
    subspace_overlap,
    unbiased_cka,
)
from qkvbench.analysis.symmetry import score_symmetry, symmetry

__all__ = [
    "LAYER_MEASURES",
    "WEIGHT_MEASURES",
    "HeadsError",
    "Layer",
    "LayerMeasure",
    "LayerNames",
    "WeightMeasure",
    "Weights",
    "attention_entropy",
    "best_rotation",
    "cosine",
    "diagonal_share",
    "effective_rank",
    "find_layers",
    "measure_layer",
    "measure_weights",
    "read_weights",
    "rotation_residual",
    "score_symmetry",
    "subspace_overlap",
    "symmetry",
    "unbiased_cka",
]
