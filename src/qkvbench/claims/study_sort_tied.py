"""Sorting with `q,k=v`."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Runs
from qkvbench.claims._figure import printed
from qkvbench.claims._scales import SYNTHETIC

SCORE, BASELINE = printed("0.958"), printed("0.971")


def _arithmetic() -> Arithmetic:
    loss = BASELINE.value - SCORE.value
    return Arithmetic(
        says=f"Its two accuracies are {loss:.3f} apart, over all its lengths and sizes. Nothing "
        "bounds a loss of quality."
    )


CLAIM = Claim(
    text="On sorting, sharing key and value loses 0.013 of accuracy and not more.",
    source=STUDY,
    place="table of synthetic tasks, SORT",
    quantity="accuracy of `q,k=v` on sorting digits, beside that of `q,k,v`",
    stated=(SCORE,),
    arithmetic=_arithmetic,
    tests=(
        Runs(
            "q,k=v",
            "no worse",
            ("sort",),
            SYNTHETIC,
            margin=BASELINE.value - SCORE.value,
        ),
    ),
    recipe="longer",
)
