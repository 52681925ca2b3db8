"""Quality of `q=k=v=x`."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Runs
from qkvbench.claims._figure import printed, reduction
from qkvbench.claims._scales import AT_125M


def _arithmetic() -> Arithmetic:
    glue = reduction(printed("62.3"), printed("85.2")).text
    bleu = reduction(printed("18.9"), printed("28.4")).text
    return Arithmetic(
        says=f"Its table loses {glue} of GLUE and {bleu} of BLEU. Neither an interval nor "
        "a number of seeds is given, and nothing bounds a loss of quality."
    )


CLAIM = Claim(
    text="Without any projection a quarter to a third of the quality is lost.",
    source=ARTICLE,
    place="results table, No projections",
    quantity="GLUE and BLEU that `q=k=v=x` loses, percent of those of `q,k,v`",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q=k=v=x", "worse", ("lm-reviews",), AT_125M),),
    recipe="quick",
)
