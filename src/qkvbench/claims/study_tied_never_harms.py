"""Sharing key and value on small tasks in general."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Runs
from qkvbench.claims._reported import SORT
from qkvbench.claims._scales import SMALL

# No harm is no more than what its own table loses on sorting.
LOSS = SORT["q,k,v"].value - SORT["q,k=v"].value


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Nothing bounds a loss of quality. None of its five synthetic tasks asks for "
        "associative recall, on which the authors' later runs of a related variant fail."
    )


CLAIM = Claim(
    text="Sharing key and value does no harm on small tasks, whichever they are.",
    source=STUDY,
    place="conclusion from its synthetic tasks, read as a rule",
    quantity="scores of `q,k=v` beside those of `q,k,v`; on recall, seeds that solve it",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q,k=v", "no worse", ("sort", "recall"), SMALL, margin=LOSS),),
    recipe="quick",
)
