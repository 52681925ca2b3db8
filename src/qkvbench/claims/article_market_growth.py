"""The growth rate of the market."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import Figure, printed

YEARS = 5


def _arithmetic() -> Arithmetic:
    now, then = printed("12.5"), printed("48.6")
    value, low, high = (
        100 * ((b / a) ** (1 / YEARS) - 1)
        for a, b in ((now.value, then.value), (now.high, then.low), (now.low, then.high))
    )
    rate = Figure(value, low, high, f"{value:.2f}% ({low:.2f} to {high:.2f})")
    return Arithmetic(says="The fifth root of the growth that it gives.", figures=(rate,))


CLAIM = Claim(
    text="A market that grows from 12.5 to 48.6 billion in five years grows by 31.2% a year.",
    source=ARTICLE,
    place="text on the market",
    quantity="compound annual growth rate; what the market will do is not tested",
    stated=(printed("31.2", "%"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
