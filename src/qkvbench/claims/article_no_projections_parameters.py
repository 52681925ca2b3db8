"""What is left without any projection of query, key and value."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import gpt2_small, saved_parameters, total_figure


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    return Arithmetic(
        says=f"Embeddings, feed-forward and output projection remain; all three projections are "
        f"{percent(saved_parameters(model, 'q=k=v=x'))} of GPT-2 small.",
        figures=(total_figure(model, "q=k=v=x"),),
    )


CLAIM = Claim(
    text="Without any projection a model has no parameters.",
    source=ARTICLE,
    place="results table, No projections",
    quantity="parameters of the whole 125M model, millions",
    stated=(printed("0", "M"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
