"""Whether a matrix is the same from both sides: do tokens attend to each other alike?"""

import math

import numpy as np
from jaxtyping import Float


def symmetry(matrices: Float[np.ndarray, "*many tokens tokens"]) -> float:
    """(|S|² - |N|²) / |M|² for the symmetric part S of M and the rest N; the mean over matrices.

    1 is symmetric, -1 is antisymmetric, and 0 is expected of independent entries about zero.
    arXiv:2502.10927 scores weights so. NaN where all matrices are zero.
    """
    exact = matrices.astype(np.float64)
    # |S|² - |N|² is the product of M with its transpose.
    both = (exact * exact.swapaxes(-1, -2)).sum(axis=(-1, -2))
    return _mean_share(np.atleast_1d(both), np.atleast_1d(np.square(exact).sum(axis=(-1, -2))))


def score_symmetry(
    query: Float[np.ndarray, "head_dim d_model"], key: Float[np.ndarray, "head_dim d_model"]
) -> float:
    """The `symmetry` of W_Qᵀ·W_K, by which a score is a product of two streams.

    arXiv:2502.10927. Nothing of size d_model × d_model is made.
    """
    query, key = query.astype(np.float64), key.astype(np.float64)
    crossed = key @ query.T
    # The traces of M·M and of Mᵀ·M, for M = W_Qᵀ·W_K.
    both, whole = (crossed * crossed.T).sum(), ((query @ query.T) * (key @ key.T)).sum()
    return _mean_share(np.atleast_1d(both), np.atleast_1d(whole))


def _mean_share(parts: Float[np.ndarray, "*many"], wholes: Float[np.ndarray, "*many"]) -> float:
    full = wholes > 0
    return float((parts[full] / wholes[full]).mean()) if full.any() else math.nan
