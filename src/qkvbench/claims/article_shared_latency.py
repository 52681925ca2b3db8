"""How much faster one projection is said to be."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed, reduction


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="That is what the article's own table gives for the two latencies in milliseconds.",
        figures=(reduction(printed("9.5"), printed("12.3")),),
    )


CLAIM = Claim(
    text="One shared projection makes inference 30% faster.",
    source=ARTICLE,
    place="text, against the results table",
    quantity="latency saved by `q=k=v`, percent of that of `q,k,v`",
    stated=(printed("30", "%"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
