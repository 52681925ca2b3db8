"""Which of two ties costs more."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Runs
from qkvbench.claims._reported import loss_300m
from qkvbench.claims._scales import AT_300M


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says=f"Its table gives {loss_300m('q=k,v').text} against {loss_300m('q,k=v').text}, one "
        "run each. Nothing bounds a difference of quality."
    )


CLAIM = Claim(
    text="Using the query as key costs a language model more than sharing key and value.",
    source=STUDY,
    place="table 4",
    quantity="validation perplexity of `q=k,v` beside that of `q,k=v`",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q=k,v", "worse", ("lm-reviews",), AT_300M, against="q,k=v"),),
    recipe="quick",
)
