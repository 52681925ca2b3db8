"""How much less there is to compute with one projection."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed, Figure
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import gpt2_small, saved_flops

LONGEST = 2048


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    least, usual, most = (saved_flops(model, "q=k=v", tokens) for tokens in (LONGEST, 128, 1))
    return Arithmetic(
        says=f"The longer the input, the less: {percent(usual)} at 128 tokens, "
        f"{percent(least)} at {LONGEST}. A third is one projection's share of the projection step.",
        figures=(
            Figure(100 * usual, 100 * least, 100 * most, f"{percent(least)} to {percent(most)}"),
        ),
    )


CLAIM = Claim(
    text="One shared projection needs a third fewer floating-point operations.",
    source=ARTICLE,
    place="text",
    quantity="operations that `q=k=v` saves in a forward pass of the 125M model, percent",
    stated=(printed("33", "%"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
