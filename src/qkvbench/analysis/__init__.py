"""What explains a result: numbers on the Q, K, V and attention of a layer, as plain arrays.

Nothing here knows a framework or a file: the arrays may be of a run of ours or of any checkpoint.
"""

from qkvbench.analysis.attention import attention_entropy, diagonal_share
from qkvbench.analysis.checkpoint import Found, find_layers, weights_of
from qkvbench.analysis.layer import (
    LAYER_MEASURES,
    WEIGHT_MEASURES,
    Layer,
    LayerMeasure,
    WeightMeasure,
    Weights,
    measured,
    measured_weights,
)
from qkvbench.analysis.rank import effective_rank
from qkvbench.analysis.similarity import (
    Similarity,
    best_rotation,
    cka,
    cosine,
    principal_angles,
    rotation_residual,
    similarity,
    subspace_overlap,
    unbiased_cka,
)
from qkvbench.analysis.symmetry import score_symmetry, symmetry

__all__ = [
    "LAYER_MEASURES",
    "WEIGHT_MEASURES",
    "Found",
    "Layer",
    "LayerMeasure",
    "Similarity",
    "WeightMeasure",
    "Weights",
    "attention_entropy",
    "best_rotation",
    "cka",
    "cosine",
    "diagonal_share",
    "effective_rank",
    "find_layers",
    "measured",
    "measured_weights",
    "principal_angles",
    "rotation_residual",
    "score_symmetry",
    "similarity",
    "subspace_overlap",
    "symmetry",
    "unbiased_cka",
    "weights_of",
]
