"""The loss at 2,048 tokens in the ablation of lengths."""

from qkvbench.claims import STUDY, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import loss_300m


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="That is its main table's loss at the same length. Where the two differ they "
        "contradict each other, unless their budgets differ too. Which is nearer is not known: one "
        "run each.",
        figures=(loss_300m("q,k=v"),),
    )


CLAIM = Claim(
    text="At 2,048 tokens, by the table of lengths, sharing key and value costs 2.2%.",
    source=STUDY,
    place="table 16 (seen in one secondary source), against table 4",
    quantity="validation perplexity that `q,k=v` loses at 2,048 tokens, percent",
    stated=(printed("2.2", "%"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
