"""Tying key and value of a trained model."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Elsewhere
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import LATER_PERPLEXITY

AFTER = printed("6,430")


def _arithmetic() -> Arithmetic:
    times = AFTER.value / LATER_PERPLEXITY["q,k,v"].value
    return Arithmetic(says=f"That is {times:.0f} times its perplexity before. Nothing bounds it.")


CLAIM = Claim(
    text="Averaging key and value of a trained 300M model takes its perplexity from 20.8 to 6,430.",
    source=STUDY,
    place="authors' later runs, distillation on FineWeb-Edu",
    quantity="perplexity of a trained `q,k,v` right after it is made a `q,k=v`",
    stated=(LATER_PERPLEXITY["q,k,v"], AFTER),
    arithmetic=_arithmetic,
    tests=(Elsewhere("conversion of trained models, and the released 300M checkpoint"),),
)
