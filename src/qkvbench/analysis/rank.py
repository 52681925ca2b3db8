"""The effective rank of a matrix."""

import math

import numpy as np
from jaxtyping import Float


def effective_rank(matrix: Float[np.ndarray, "rows columns"]) -> float:
    """Exp of the entropy of the singular values, normalized to sum 1.

    From 1 to the rank, which it reaches if all are equal; NaN for a matrix of zeros. Roy and
    Vetterli, "The effective rank", EUSIPCO 2007, definition 1. The matrix is not centered.
    """
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    if not values.sum() > 0:
        return math.nan
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
