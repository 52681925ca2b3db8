"""Recall and the number of heads."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Runs
from qkvbench.claims._scales import SMALL


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Nothing bounds it. The later runs are of another variant, with three seeds each, and "
        "with one head they all solve it."
    )


CLAIM = Claim(
    text="With its value tied to its key a model of four heads fails at associative recall.",
    source=STUDY,
    place="authors' later runs of Keyless, commit ff3ef42",
    quantity="seeds of `q,k=v` that solve recall with four heads",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q,k=v", "worse", ("recall@4x16",), SMALL),),
    recipe="heads",
)
