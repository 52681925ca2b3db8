"""Perplexity that `q,k=v` loses at 1.2B."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Consistent, Runs
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import loss_1_2b
from qkvbench.claims._scales import AT_1_2B


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says=f"Its perplexities give {loss_1_2b('q,k=v').text}. One run, and padding is scored.",
        figures=(loss_1_2b("q,k=v"),),
    )


CLAIM = Claim(
    text="At 1.2B, sharing key and value costs 2.48% of perplexity.",
    source=STUDY,
    place="table 10",
    quantity="validation perplexity that `q,k=v` loses against `q,k,v`, percent",
    stated=(printed("2.48", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Runs("q,k=v", "worse", ("lm-reviews",), AT_1_2B)),
    recipe="longer",
)
