"""Recall and the number of heads."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Elsewhere


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Nothing bounds it. The later runs are of another variant, with three seeds each."
    )


CLAIM = Claim(
    text="With its value tied to its key a model fails at recall with four heads, not with one.",
    source=STUDY,
    place="authors' later runs of Keyless, commit ff3ef42",
    quantity="seeds of `q,k=v` that solve recall, by number of heads",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Elsewhere("recall with one head and with four, which no recipe varies yet"),),
)
