"""How alike two matrices are whose rows are the same samples: four questions, four answers.

Rows are samples and columns are features. Of activations a sample is a token; of a projection it
is a coordinate of the stream, so that a matrix of weights comes transposed. NaN is the answer to
a question that has none, such as the direction of a matrix of zeros.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import orthogonal_procrustes, subspace_angles

First = Float[np.ndarray, "samples first"]
Second = Float[np.ndarray, "samples second"]
Matrix = Float[np.ndarray, "samples features"]


@dataclass(frozen=True)
class Similarity:
    """What two matrices have in common.

    ``cosine`` and ``rotation_residual`` are NaN where the matrices have not as many features.
    """

    cosine: float
    cka: float
    angles: tuple[float, ...]
    rotation_residual: float


def similarity(first: First, second: Second) -> Similarity:
    """All four; the CKA is the unbiased one."""
    alike = first.shape == second.shape
    return Similarity(
        cosine=cosine(first, second) if alike else math.nan,
        cka=unbiased_cka(first, second),
        angles=principal_angles(first, second),
        rotation_residual=rotation_residual(first, second) if alike else math.nan,
    )


def cosine(first: Matrix, second: Matrix) -> float:
    """The same numbers at the same places? The cosine of the two as vectors, from -1 to 1."""
    one, other = _exact(first), _exact(second)
    return _ratio((one * other).sum(), (one * one).sum() * (other * other).sum())


def cka(first: First, second: Second) -> float:
    """The same samples near to each other? Linear CKA, from 0 to 1. arXiv:1905.00414, eq. 4.

    Independent Gaussian features come to about sqrt(pq / ((n + p)(n + q))) for n samples of p and
    q features, not to 0: with few samples take `unbiased_cka`.
    """
    one, other = _centred(first), _centred(second)
    return _ratio(_shared(one, other), _shared(one, one) * _shared(other, other))


def unbiased_cka(first: First, second: Second) -> float:
    """CKA from an unbiased estimate of its three terms; 0 is expected of what is independent.

    At most 1, and a little below 0 by chance. arXiv:2010.15327, eq. 3, computed from features, so
    that nothing of size samples × samples is made. NaN below four samples.
    """
    if len(first) < 4:
        return math.nan
    one, other = _centred(first), _centred(second)
    own = _unbiased(one, one), _unbiased(other, other)
    return _ratio(_unbiased(one, other), own[0] * own[1]) if min(own) > 0 else math.nan


def principal_angles(first: First, second: Second) -> tuple[float, ...]:
    """The same directions in use? Angles between the column spaces in radians, ascending.

    As many as the smaller space has dimensions; none where a matrix is zero.
    """
    one, other = _basis(first), _basis(second)
    if not (one.shape[1] and other.shape[1]):
        return ()
    return tuple(float(angle) for angle in subspace_angles(one, other)[::-1])


def subspace_overlap(first: First, second: Second) -> float:
    """The mean squared cosine of the principal angles: which part of the smaller space is in both.

    Independent random spaces of p and q dimensions among n have max(p, q) / n on average.
    """
    one, other = _basis(first), _basis(second)
    smaller = min(one.shape[1], other.shape[1])
    return min(1.0, float(np.square(one.T @ other).sum() / smaller)) if smaller else math.nan


def best_rotation(first: Matrix, second: Matrix) -> Float[np.ndarray, "features features"]:
    """The orthogonal R for which first·R is nearest to second; its determinant may be -1."""
    return orthogonal_procrustes(_exact(first), _exact(second))[0]


def rotation_residual(first: Matrix, second: Matrix) -> float:
    """The same up to a rotation? The share of one that the other, rotated and scaled, leaves over.

    From 0, where some c·first·R is second, to 1; the same both ways. It is
    1 - (nuclear norm of firstᵀ·second)² / (|first|²·|second|²), orthogonal Procrustes with a
    scale (Schönemann 1966). For n samples of p independent Gaussian features it is about
    1 - (8/3π)²·p/n where n is much larger than p.
    """
    one, other = _exact(first), _exact(second)
    nuclear = np.linalg.svd(one.T @ other, compute_uv=False).sum()
    explained = _ratio(nuclear, (one * one).sum() * (other * other).sum())
    # Rounding may explain a little more than there is.
    return max(1 - explained**2, 0.0)


def _exact(matrix: Matrix) -> Matrix:
    return matrix.astype(np.float64)


def _centred(matrix: Matrix) -> Matrix:
    """Each feature about its mean: what remains of it is how samples differ."""
    exact = _exact(matrix)
    return exact - exact.mean(axis=0)


def _shared(one: First, other: Second) -> float:
    """HSIC of the two linear kernels, without its factor 1/(n - 1)²."""
    return float(np.square(one.T @ other).sum())


def _unbiased(one: First, other: Second) -> float:
    """The unbiased HSIC of the kernels XXᵀ and YYᵀ, without its factor 1/(n(n - 3))."""
    n = len(one)
    own_one, own_other = (one * one).sum(axis=1), (other * other).sum(axis=1)
    # The kernels without their diagonals: what each of their rows sums to.
    rows_one = one @ one.sum(axis=0) - own_one
    rows_other = other @ other.sum(axis=0) - own_other
    return float(
        _shared(one, other)
        - own_one @ own_other
        + rows_one.sum() * rows_other.sum() / ((n - 1) * (n - 2))
        - 2 * (rows_one @ rows_other) / (n - 2)
    )


def _basis(matrix: Matrix) -> Float[np.ndarray, "samples dimensions"]:
    """An orthonormal basis of the column space, whose rank is judged at the input's precision."""
    left, values, _ = np.linalg.svd(_exact(matrix), full_matrices=False)
    least = values.max(initial=0) * max(matrix.shape) * np.finfo(matrix.dtype).eps
    return left[:, values > least]


def _ratio(product: float, squares: float) -> float:
    """A product over the root of its two squares; for one and the same thing exactly 1."""
    return float(product / math.sqrt(squares)) if squares > 0 else math.nan
