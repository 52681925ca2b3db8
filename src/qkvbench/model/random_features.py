"""The random features of FAVOR+: the same numbers in every run and in every backend."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from qkvbench.model.rng import generator
from qkvbench.variant import Favor


@lru_cache(maxsize=64)
def random_features(
    favor: Favor, heads: int, width: int
) -> Float[np.ndarray, "heads features width"]:
    """Gaussian rows of each head, orthogonal in blocks of `width`. arXiv:2009.14794, section 2.4.

    Each row has the length of a Gaussian one that was drawn apart from it.
    """
    features = int(favor.features)
    rng = generator(int(favor.draw), "random features", f"{features}x{width}")
    blocks = -(-features // width)
    drawn = rng.standard_normal((heads, blocks, width, width))
    bases, upper = np.linalg.qr(drawn)
    # With these signs no basis is likelier than another.
    bases = bases * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[..., None, :]
    rows = np.swapaxes(bases, -1, -2).reshape(heads, blocks * width, width)[:, :features]
    lengths = np.linalg.norm(rng.standard_normal((heads, features, width)), axis=-1)
    return rows * lengths[..., None]
