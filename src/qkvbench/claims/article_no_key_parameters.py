"""What is left without the key projection."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import gpt2_small, saved_parameters, total_figure


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    two = total_figure(model, "q=k=v").text
    return Arithmetic(
        says=f"One projection of three is {percent(saved_parameters(model, 'q=k,v'))} of "
        f"GPT-2 small; {two} is what is left without two.",
        figures=(total_figure(model, "q=k,v"),),
    )


CLAIM = Claim(
    text="Using the query as key takes a 125M model to 110M parameters, 12% fewer.",
    source=ARTICLE,
    place="results table, No Key",
    quantity="parameters of the whole 125M model, millions",
    stated=(printed("110", "M"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
