"""Where attention goes: how widely, and how much of it to the token itself.

Shares are the rows of softmax; ``seen`` says which keys a query may see. Only queries with a
choice count: one that sees a single key, as the first of a causal model does, says nothing.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import entr

Shares = Float[np.ndarray, "*many queries keys"]
Seen = Bool[np.ndarray, "*#many queries keys"]


def attention_entropy(shares: Shares, seen: Seen) -> float:
    """The mean entropy of the rows over the most it can be, log(keys seen): 0 one key, 1 all alike.

    NaN where no query has a choice.
    """
    visible = np.broadcast_to(seen.sum(axis=-1), shares.shape[:-1])
    chosen = visible > 1
    if not chosen.any():
        return math.nan
    entropy = entr(shares.astype(np.float64)).sum(axis=-1)
    return float((entropy[chosen] / np.log(visible[chosen])).mean())


def diagonal_share(
    shares: Float[np.ndarray, "*many tokens tokens"], seen: Bool[np.ndarray, "*#many tokens tokens"]
) -> float:
    """The mean share that a token gives to itself; NaN where no query has a choice."""
    chosen = np.broadcast_to(seen.sum(axis=-1), shares.shape[:-1]) > 1
    own = np.diagonal(shares, axis1=-2, axis2=-1)
    return float(own[chosen].mean(dtype=np.float64)) if chosen.any() else math.nan
