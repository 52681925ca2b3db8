"""Which projection the study is said to find redundant."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Runs, Undominated
from qkvbench.claims._figure import percent
from qkvbench.claims._models import kept, study_300m
from qkvbench.claims._reported import loss_300m, points_300m
from qkvbench.claims._scales import AT_300M

PAIR = ("q=k,v", "q,k=v")


def _arithmetic() -> Arithmetic:
    query, value = (loss_300m(arm).text for arm in PAIR)
    saved = percent(1 - kept(study_300m(), "q=k,v"), 0)
    return Arithmetic(
        says=f"The study reports at 300M that `q=k,v` loses {query} of perplexity and "
        f"`q,k=v` {value}, one run each; and `q=k,v` saves {saved} of the cache.",
    )


CLAIM = Claim(
    text="The study finds the key projection to be the redundant one: the query can be the key.",
    source=ARTICLE,
    place="text, as an account of the study",
    quantity="perplexity and cache of `q=k,v` beside those of `q,k=v`, as the study reports them",
    stated=(),
    arithmetic=_arithmetic,
    tests=(
        Undominated(lambda: {arm: points_300m()[arm] for arm in PAIR}, ("q=k,v",)),
        Runs("q=k,v", "no worse", ("lm-reviews",), AT_300M, against="q,k=v"),
    ),
    recipe="quick",
)
