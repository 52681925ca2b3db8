"""Perplexity that `q,k=v` loses at 300M."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Consistent, Runs
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import loss_300m
from qkvbench.claims._scales import AT_300M


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says=f"Its perplexities give {loss_300m('q,k=v').text}. One run, and padding is scored.",
        figures=(loss_300m("q,k=v"),),
    )


CLAIM = Claim(
    text="At 300M, sharing key and value costs 3.1% of perplexity.",
    source=STUDY,
    place="table 4",
    quantity="validation perplexity that `q,k=v` loses against `q,k,v`, percent",
    stated=(printed("3.1", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Runs("q,k=v", "worse", ("lm-reviews",), AT_300M)),
    recipe="longer",
)
