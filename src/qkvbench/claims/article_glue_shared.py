"""GLUE with one projection."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere
from qkvbench.claims._figure import printed, reduction
from qkvbench.claims._scales import AT_125M


def _arithmetic() -> Arithmetic:
    loss = reduction(printed("84.7"), printed("85.2")).text
    return Arithmetic(
        says=f"Its table loses {loss}. Neither an interval nor a number of seeds is given, and "
        "nothing bounds a loss of quality.",
    )


CLAIM = Claim(
    text="One shared projection loses less than 1% of the GLUE score.",
    source=ARTICLE,
    place="results table, Shared QKV",
    quantity="GLUE score that `q=k=v` loses, percent of that of `q,k,v`",
    stated=(printed("1", "%"),),
    arithmetic=_arithmetic,
    tests=(Elsewhere(AT_125M.takes()),),
)
