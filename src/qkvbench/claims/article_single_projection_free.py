"""What one projection is said to cost in the study."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Consistent, Runs
from qkvbench.claims._figure import printed
from qkvbench.claims._reported import PERPLEXITY_300M, loss_300m
from qkvbench.claims._scales import AT_300M


def _arithmetic() -> Arithmetic:
    others = [arm for arm in PERPLEXITY_300M if arm not in ("q,k,v", "q=k=v")]
    least, *_, most = sorted(map(loss_300m, others), key=lambda loss: loss.value)
    return Arithmetic(
        says="That is the study's own table at 300M, one run; its other variants lose "
        f"{least.value:.1f} to {most.value:.1f}%.",
        figures=(loss_300m("q=k=v"),),
    )


CLAIM = Claim(
    text="The study finds that one projection for query, key and value costs no quality.",
    source=ARTICLE,
    place="text, as an account of the study",
    quantity="perplexity that `q=k=v` loses in the study, percent",
    stated=(printed("0", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Runs("q=k=v", "no worse", ("lm-reviews",), AT_300M)),
    recipe="quick",
)
