"""Quality of `q=k=x,v`."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Runs
from qkvbench.claims._figure import printed, reduction
from qkvbench.claims._scales import AT_125M


def _arithmetic() -> Arithmetic:
    glue = reduction(printed("77.5"), printed("85.2")).text
    bleu = reduction(printed("24.1"), printed("28.4")).text
    return Arithmetic(
        says=f"Its table loses {glue} of GLUE and {bleu} of BLEU. Neither an interval nor "
        "a number of seeds is given, and nothing bounds a loss of quality."
    )


CLAIM = Claim(
    text="Keeping only the value projection loses about a tenth of the quality.",
    source=ARTICLE,
    place="results table, Value-only",
    quantity="GLUE and BLEU that `q=k=x,v` loses, percent of those of `q,k,v`",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q=k=x,v", "worse", ("lm-reviews",), AT_125M),),
    recipe="quick",
)
