"""GLUE with one projection."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Consistent, Elsewhere
from qkvbench.claims._figure import printed, reduction
from qkvbench.claims._scales import AT_125M


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Its table's two scores give that. Nothing bounds a loss of quality; neither an "
        "interval nor a number of seeds is given.",
        figures=(reduction(printed("84.7"), printed("85.2")),),
    )


CLAIM = Claim(
    text="One shared projection loses less than 1% of the GLUE score.",
    source=ARTICLE,
    place="results table, Shared QKV",
    quantity="GLUE score that `q=k=v` loses, percent of that of `q,k,v`",
    stated=(printed("0.6", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Elsewhere(AT_125M.takes())),
)
