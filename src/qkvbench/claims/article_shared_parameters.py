"""What is left with one projection for query, key and value."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Computed
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import (
    gpt2_small,
    saved_outside_embedding,
    saved_parameters,
    total_figure,
)


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    return Arithmetic(
        says=f"Two projections of three are {percent(saved_parameters(model, 'q=k=v'))} of GPT-2 "
        f"small, and {percent(saved_outside_embedding(model, 'q=k=v'))} of it without embeddings.",
        figures=(total_figure(model, "q=k=v"),),
    )


CLAIM = Claim(
    text="One projection for all takes a 125M model to 84M parameters, a third fewer.",
    source=ARTICLE,
    place="results table, Shared QKV",
    quantity="parameters of the whole 125M model, millions",
    stated=(printed("84", "M"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
