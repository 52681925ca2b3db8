"""Sorting with `q=k,v`."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Runs
from qkvbench.claims._reported import SORT
from qkvbench.claims._scales import SYNTHETIC

LOSS = SORT["q,k,v"].value - SORT["q=k,v"].value


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says=f"Its two accuracies are {LOSS:.3f} apart, over all its lengths and sizes. Nothing "
        "bounds a loss of quality."
    )


CLAIM = Claim(
    text="On sorting, using the query as key loses 0.004 of accuracy and not more.",
    source=STUDY,
    place="table of synthetic tasks, SORT",
    quantity="accuracy of `q=k,v` on sorting digits, beside that of `q,k,v`",
    stated=(SORT["q=k,v"],),
    arithmetic=_arithmetic,
    tests=(
        Runs(
            "q=k,v",
            "no worse",
            ("sort",),
            SYNTHETIC,
            margin=LOSS,
        ),
    ),
    recipe="longer",
)
