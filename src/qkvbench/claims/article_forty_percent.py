"""The largest saving that is promised."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed, Figure
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import gpt2_small, saved_outside_embedding, saved_parameters


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    whole = saved_parameters(model, "q=k=v=x")
    outside = saved_outside_embedding(model, "q=k=v=x")
    return Arithmetic(
        says="That is all three projections gone: first of the whole of GPT-2 small, then of what "
        "is not embedding; a feed-forward of four times the width allows no more.",
        figures=(
            Figure(
                100 * whole, 100 * whole, 100 * outside, f"{percent(whole)} to {percent(outside)}"
            ),
        ),
    )


CLAIM = Claim(
    text="Up to 40% of the parameters can be saved by removing projections.",
    source=ARTICLE,
    place="text",
    quantity="largest share of the parameters that removing Q, K and V projections saves",
    stated=(printed("40", "%"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
