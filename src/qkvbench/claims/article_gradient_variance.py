"""Gradients on very long sequences."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere


def _arithmetic() -> Arithmetic:
    return Arithmetic(says="Nothing bounds it: it is a property of training.")


CLAIM = Claim(
    text="On sequences of 100k tokens, training without key projections has gradient norms that vary more.",
    source=ARTICLE,
    place="text on limits",
    quantity="variance of the gradient norm over training steps, by length and variant",
    stated=(),
    arithmetic=_arithmetic,
    tests=(
        Elsewhere(
            "training at several lengths up to 100k tokens with the norm of each step recorded, on a GPU"
        ),
    ),
)
