"""Rotations from learned numbers, in NumPy: how a learned rotation is defined and begins."""

import numpy as np
from jaxtyping import Float


def rotation(
    numbers: Float[np.ndarray, "heads numbers"], head_dim: int
) -> Float[np.ndarray, "heads head_dim head_dim"]:
    """Orthogonal matrices from skew-symmetric ones A, by Cayley: (1 - A/2)^-1 (1 + A/2).

    `numbers` fill A above the diagonal, row by row. Rotations by half a circle cannot be written.
    """
    above = np.triu_indices(head_dim, 1)
    skew = np.zeros((len(numbers), head_dim, head_dim), dtype=numbers.dtype)
    skew[:, above[0], above[1]] = numbers
    skew -= np.swapaxes(skew, 1, 2)
    one = np.eye(head_dim, dtype=numbers.dtype)
    return np.linalg.solve(one - skew / 2, one + skew / 2)
