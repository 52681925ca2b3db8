"""The symmetry of a matrix of scores: do tokens attend to each other equally?"""

import math

import numpy as np
from jaxtyping import Float


def symmetry(matrices: Float[np.ndarray, "*many tokens tokens"]) -> float:
    """(|S|² - |N|²) / |M|² for the symmetric part S of M and the rest N; the mean over matrices.

    1 is symmetric, -1 is antisymmetric; the expectation is 0 for independent entries with mean 0.
    The symmetry score of arXiv:2502.10927. NaN if all matrices are zero.
    """
    exact = matrices.astype(np.float64)
    # |S|² - |N|² is the product of M with its transpose.
    both = (exact * exact.swapaxes(-1, -2)).sum(axis=(-1, -2))
    return _mean_share(np.atleast_1d(both), np.atleast_1d(np.square(exact).sum(axis=(-1, -2))))


def score_symmetry(
    query: Float[np.ndarray, "head_dim d_model"], key: Float[np.ndarray, "head_dim d_model"]
) -> float:
    """The `symmetry` of W_Qᵀ·W_K, the bilinear form of the scores. arXiv:2502.10927.

    No d_model × d_model matrix is allocated.
    """
    query, key = query.astype(np.float64), key.astype(np.float64)
    crossed = key @ query.T
    # The traces of M·M and of Mᵀ·M, for M = W_Qᵀ·W_K.
    both, whole = (crossed * crossed.T).sum(), ((query @ query.T) * (key @ key.T)).sum()
    return _mean_share(np.atleast_1d(both), np.atleast_1d(whole))


def _mean_share(parts: Float[np.ndarray, "*many"], wholes: Float[np.ndarray, "*many"]) -> float:
    full = wholes > 0
    return float((parts[full] / wholes[full]).mean()) if full.any() else math.nan
