"""Weights, gradients and encodings inside the model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from qkvbench.claims.kit.arithmetic import AtMost, NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import Pool
from qkvbench.claims.kit.figure import exact_figure, figure
from qkvbench.claims.kit.models import study_300m
from qkvbench.claims.kit.runs import Measured

TOKENS, CHANNELS = 13, 10
# Error bound of sums of a dozen numbers near 1 in double precision.
ROUNDING = 1e-12

Encoding = Callable[[np.random.Generator], Float[np.ndarray, "queries keys"]]


def row_and_column(rng: np.random.Generator) -> Float[np.ndarray, "queries keys"]:
    """A 1 × 1 convolution of row features concatenated with column features: a linear map."""
    rows, columns = rng.normal(size=(2, TOKENS, CHANNELS))
    row_weights, column_weights = rng.normal(size=(2, CHANNELS))
    return (rows @ row_weights)[:, None] + (columns @ column_weights)[None, :]


def largest_effect(encoding: Encoding) -> float:
    """The largest change of attention weights beyond one bias for each key, at random scores."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(TOKENS, TOKENS))
    added = encoding(rng)
    # A bias for each key is equal for all queries: take the first query's.
    whole, biased = softmax(scores + added, axis=1), softmax(scores + added[:1], axis=1)
    return float(np.abs(whole - biased).max())


@dataclass(frozen=True)
class CancelsOut:
    """Impossible if the encoding, after softmax, is the same to every query."""

    encoding: Encoding = row_and_column

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Impossible, or None."""
        if largest_effect(self.encoding) > ROUNDING:
            return None
        return Finding("impossible", claim.arithmetic().text)


CLAIMS = (
    Claim(
        name="study-position-in-scores",
        text="The encoding that the variants marked + add to the scores depends on both positions, "
        "the query's and the key's.",
        place="the name of the variants marked +, a two-dimensional positional encoding",
        quantity="attention with the encoding, beside attention with one bias for each key",
        arithmetic=lambda: Arithmetic(
            "The query's part cancels in softmax: without it weights change by "
            f"{largest_effect(row_and_column):.0e}. The map is linear, so it adds a term of the "
            "row and one of the column; what is left is a temperature and one bias for each key, "
            "the same to every query."
        ),
        tests=(
            CancelsOut(),
            NotTestable("a variant whose encoding depends on both places together"),
        ),
    ),
    Claim(
        name="study-similar-matrices",
        text="The projection matrices of key and value become alike: their cosine is 0.73.",
        place="slide 6",
        quantity="cosine of the key's and the value's projection matrix in a trained 300M `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "That is the weights' cosine at 300M in the authors' later table (commit 4585ac0). "
            " Activations are alike there (CKA 0.70), which may be what was meant.",
            (figure("0.0000"),),
        ),
        tests=(OwnFigures(),),
        figures=(figure("0.73"),),
    ),
    Claim(
        name="study-alike-projections",
        text="Query and key, and query and value, are less alike than key and value: cosines of "
        "0.42 and 0.31.",
        place="slide 6",
        quantity="cosines between the projections of a trained 300M `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "Weights or activations is not said; of key and value the authors' later table has "
            "weights at 0.0000 and activations alike. Nothing bounds a cosine."
        ),
        tests=(NotTestable("the study's trained 300M checkpoint"),),
        figures=(figure("0.42"), figure("0.31")),
    ),
    Claim(
        name="study-effective-rank",
        text="The effective rank of key and value is about the same: 687 and 702 of 1024.",
        place="slide 6",
        quantity="effective ranks in a trained 300M `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "Neither exceeds the width of the model. Equal ranks do not make two matrices alike.",
            tuple(
                exact_figure(study_300m().geometry.d_model, f"{study_300m().geometry.d_model}")
                for _ in range(2)
            ),
        ),
        tests=(AtMost(), NotTestable("the study's trained 300M checkpoint")),
        figures=(figure("687"), figure("702")),
    ),
    Claim(
        name="article-gradient-variance",
        text="On sequences of 100k tokens, gradient norms vary more in training without key "
        "projections.",
        place="text on limits",
        quantity="variance of the gradient norm over training steps, by length and variant",
        arithmetic=lambda: Arithmetic("Nothing bounds it: it is a property of training."),
        tests=(
            Measured(
                "spread of the gradient's norm",
                ("q=k,v",),
                "rises",
                "sequences of 100k tokens",
            ),
            NotTestable(
                "training at lengths up to 100k tokens on a GPU, the norm of each step recorded"
            ),
        ),
        benchmark="long_sequences",
    ),
)
