"""What the two-dimensional encoding on the scores can express."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from qkvbench.claims import STUDY, Arithmetic, Claim, Elsewhere, Finding, Shown

TOKENS, CHANNELS = 13, 10
# Sums of a dozen numbers near 1 in double precision are off by no more.
ROUNDING = 1e-12

Encoding = Callable[[np.random.Generator], Float[np.ndarray, "queries keys"]]


def row_and_column(rng: np.random.Generator) -> Float[np.ndarray, "queries keys"]:
    """A linear map of row features joined to column features: what a 1 × 1 convolution makes."""
    rows, columns = rng.normal(size=(2, TOKENS, CHANNELS))
    of_row, of_column = rng.normal(size=(2, CHANNELS))
    return (rows @ of_row)[:, None] + (columns @ of_column)[None, :]


@dataclass(frozen=True)
class CancelsOut:
    """Impossible where the encoding is the same to every query, once softmax is taken."""

    encoding: Encoding = row_and_column

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """Impossible or nothing."""
        effect = largest_effect(self.encoding)
        if effect > ROUNDING:
            return None
        return Finding("impossible", claim.arithmetic().says)


def largest_effect(encoding: Encoding) -> float:
    """How much the encoding changes attention beyond one bias for each key, at random scores."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(TOKENS, TOKENS))
    added = encoding(rng)
    # A bias for each key is what any one query sees, so the first one's serves for all.
    whole, biased = softmax(scores + added, axis=1), softmax(scores + added[:1], axis=1)
    return float(np.abs(whole - biased).max())


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="The map is linear: it adds a term of the row and one of the column, and softmax "
        "cancels the row's. What is left is a temperature and one bias for each key, the same to "
        f"every query: the largest difference from that, at random scores, is "
        f"{largest_effect(row_and_column):.0e}."
    )


CLAIM = Claim(
    text="A two-dimensional encoding on the scores tells each query which keys come before it.",
    source=STUDY,
    place="the variants marked +",
    quantity="attention with the encoding, beside attention with one bias for each key",
    stated=(),
    arithmetic=_arithmetic,
    tests=(CancelsOut(), Elsewhere("a variant whose encoding depends on both places together")),
)
