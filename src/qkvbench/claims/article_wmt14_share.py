"""How much of the baseline's translation quality is kept."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed, quotient


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="That is the share of the two scores as printed; what they were before their own "
        "rounding could give anything in the range.",
        figures=(quotient(printed("28.0"), printed("28.4"), "%", times=100),),
    )


CLAIM = Claim(
    text="One shared projection keeps 98.7% of the baseline's BLEU on WMT14.",
    source=ARTICLE,
    place="text, against the results table",
    quantity="BLEU of `q=k=v`, percent of that of `q,k,v`",
    stated=(printed("98.7", "%"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
