"""Gradients on very long sequences."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere


def _arithmetic() -> Arithmetic:
    return Arithmetic(says="Nothing bounds it: it is a property of training.")


CLAIM = Claim(
    text=(
        "On sequences of 100k tokens, gradient norms vary more in training without key projections."
    ),
    source=ARTICLE,
    place="text on limits",
    quantity="variance of the gradient norm over training steps, by length and variant",
    stated=(),
    arithmetic=_arithmetic,
    tests=(
        Elsewhere("training at lengths up to 100k tokens on a GPU, the norm of each step recorded"),
    ),
)
