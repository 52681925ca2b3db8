"""Perplexity that `q,k,v/4` loses at 300M."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Consistent, Elsewhere
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import loss_300m
from qkvbench.claims._scales import AT_300M


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says=f"Its perplexities give {loss_300m('q,k,v/4').text}. One run, and padding is scored.",
        figures=(loss_300m("q,k,v/4"),),
    )


CLAIM = Claim(
    text="At 300M, four groups cost 0.7% of perplexity.",
    source=STUDY,
    place="table 4",
    quantity="validation perplexity that `q,k,v/4` loses against `q,k,v`, percent",
    stated=(printed("0.7", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Elsewhere(AT_300M.takes())),
)
