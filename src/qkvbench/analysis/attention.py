"""How far attention weights are spread, and how much of them is on the diagonal.

``mask`` is True for the keys that a query attends to. Queries with a single key, such as the first
one of a causal model, are left out.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import entr

AttentionWeights = Float[np.ndarray, "*many queries keys"]
Mask = Bool[np.ndarray, "*#many queries keys"]


def attention_entropy(attention_weights: AttentionWeights, mask: Mask) -> float:
    """The mean over queries of their entropy divided by its maximum, log(number of visible keys).

    0 if all weight is on one key, 1 if it is uniform; NaN if no query has more than one key.
    """
    visible = np.broadcast_to(mask.sum(axis=-1), attention_weights.shape[:-1])
    counted = visible > 1
    if not counted.any():
        return math.nan
    entropy = entr(attention_weights.astype(np.float64)).sum(axis=-1)
    return float((entropy[counted] / np.log(visible[counted])).mean())


def diagonal_share(
    attention_weights: Float[np.ndarray, "*many tokens tokens"],
    mask: Bool[np.ndarray, "*#many tokens tokens"],
) -> float:
    """The mean attention weight of a token on itself; NaN if no query has more than one key."""
    counted = np.broadcast_to(mask.sum(axis=-1), attention_weights.shape[:-1]) > 1
    own = np.diagonal(attention_weights, axis1=-2, axis2=-1)
    return float(own[counted].mean(dtype=np.float64)) if counted.any() else math.nan
