"""The loss at 2,048 tokens in the ablation of lengths."""

from qkvbench.claims import STUDY, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import loss_300m


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="That is what its main table gives for the same length, if the two are of one budget; "
        "with one run each, neither is known to be the better figure.",
        figures=(loss_300m("q,k=v"),),
    )


CLAIM = Claim(
    text="The loss of sharing key and value shrinks with length, to 2.2% of perplexity at 2,048.",
    source=STUDY,
    place="table 16 (seen in one secondary source), against table 4",
    quantity="validation perplexity that `q,k=v` loses at 2,048 tokens, percent",
    stated=(printed("2.2", "%"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
