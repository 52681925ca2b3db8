"""Measures of similarity between two matrices with the same samples.

Rows are samples and columns are features. For activations a sample is a token; for weights it is a
coordinate of the stream, so weight matrices are passed transposed. A measure that is undefined,
such as the direction of a matrix of zeros, is NaN.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg import orthogonal_procrustes

First = Float[np.ndarray, "samples first"]
Second = Float[np.ndarray, "samples second"]
Matrix = Float[np.ndarray, "samples features"]


def cosine(first: Matrix, second: Matrix) -> float:
    """The cosine of the two as flattened vectors, from -1 to 1: are the numbers the same?"""
    one, other = _as_float64(first), _as_float64(second)
    return _ratio((one * other).sum(), (one * one).sum() * (other * other).sum())


def unbiased_cka(first: First, second: Second) -> float:
    """CKA from unbiased estimates of its three terms; its mean is 0 for independent features.

    At most 1, and slightly below 0 by chance. arXiv:2010.15327, eq. 3, computed from features, so
    that no samples × samples matrix is allocated. NaN for fewer than four samples.
    """
    if len(first) < 4:
        return math.nan
    one, other = _centered(first), _centered(second)
    own = _unbiased_hsic(one, one), _unbiased_hsic(other, other)
    return _ratio(_unbiased_hsic(one, other), own[0] * own[1]) if min(own) > 0 else math.nan


def subspace_overlap(first: First, second: Second) -> float:
    """The mean squared cosine of the principal angles: the part of the smaller space in both.

    On average max(p, q) / n for independent random spaces of p and q dimensions among n.
    """
    one, other = _basis(first), _basis(second)
    smaller = min(one.shape[1], other.shape[1])
    return min(1.0, float(np.square(one.T @ other).sum() / smaller)) if smaller else math.nan


def best_rotation(first: Matrix, second: Matrix) -> Float[np.ndarray, "features features"]:
    """The orthogonal R that minimizes |first·R − second|; its determinant may be -1."""
    return orthogonal_procrustes(_as_float64(first), _as_float64(second))[0]


def rotation_residual(first: Matrix, second: Matrix) -> float:
    """The part of one that the other, rotated and scaled, does not explain; symmetric.

    From 0, if c·first·R is second, to 1. It is
    1 - (nuclear norm of firstᵀ·second)² / (|first|²·|second|²), orthogonal Procrustes with a
    scale (Schönemann 1966). For n samples of p independent Gaussian features it is about
    1 - (8/3π)²·p/n if n is much larger than p; `conclusions.random_residual` has other sizes.
    """
    one, other = _as_float64(first), _as_float64(second)
    nuclear = np.linalg.svd(one.T @ other, compute_uv=False).sum()
    explained = _ratio(nuclear, (one * one).sum() * (other * other).sum())
    # By rounding, more than everything may be explained.
    return max(1 - explained**2, 0.0)


def _as_float64(matrix: Matrix) -> Matrix:
    return matrix.astype(np.float64)


def _centered(matrix: Matrix) -> Matrix:
    """Each feature minus its mean over the samples."""
    exact = _as_float64(matrix)
    return exact - exact.mean(axis=0)


def _hsic(one: First, other: Second) -> float:
    """HSIC of the two linear kernels, without its factor 1/(n - 1)²."""
    return float(np.square(one.T @ other).sum())


def _unbiased_hsic(one: First, other: Second) -> float:
    """The unbiased HSIC of the kernels XXᵀ and YYᵀ, without its factor 1/(n(n - 3))."""
    n = len(one)
    own_one, own_other = (one * one).sum(axis=1), (other * other).sum(axis=1)
    # The row sums of the kernels without their diagonals.
    rows_one = one @ one.sum(axis=0) - own_one
    rows_other = other @ other.sum(axis=0) - own_other
    return float(
        _hsic(one, other)
        - own_one @ own_other
        + rows_one.sum() * rows_other.sum() / ((n - 1) * (n - 2))
        - 2 * (rows_one @ rows_other) / (n - 2)
    )


def _basis(matrix: Matrix) -> Float[np.ndarray, "samples dimensions"]:
    """An orthonormal basis of the column space; its rank is judged at the input's precision."""
    left, values, _ = np.linalg.svd(_as_float64(matrix), full_matrices=False)
    least = values.max(initial=0) * max(matrix.shape) * np.finfo(matrix.dtype).eps
    return left[:, values > least]


def _ratio(product: float, squares: float) -> float:
    """A product over the root of its two squares; exactly 1 for identical inputs."""
    return float(product / math.sqrt(squares)) if squares > 0 else math.nan
