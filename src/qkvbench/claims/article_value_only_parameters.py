"""What is left with the value projection alone."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed
from qkvbench.claims._figure import printed
from qkvbench.claims._models import gpt2_small, total_figure


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    return Arithmetic(
        says=f"One projection is kept, as in `q=k=v`, which therefore has "
        f"{total_figure(model, 'q=k=v').text} too; the article gives that one twice as many.",
        figures=(total_figure(model, "q=k=x,v"),),
    )


CLAIM = Claim(
    text="Keeping only the value projection takes a 125M model to 42M parameters.",
    source=ARTICLE,
    place="results table, Value-only",
    quantity="parameters of the whole 125M model, millions",
    stated=(printed("42", "M"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
