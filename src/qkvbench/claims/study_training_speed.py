"""Training speed of sharing key and value."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Consistent, Elsewhere
from qkvbench.claims._figure import change, printed
from qkvbench.claims._models import saved_flops, study_300m

LENGTH = 2048


def _arithmetic() -> Arithmetic:
    most = 1 / (1 - saved_flops(study_300m(), "q,k=v", LENGTH)) - 1
    return Arithmetic(
        says=f"Its tokens per second give that. The matrix products saved would allow "
        f"{100 * most:.1f}% if nothing else took time.",
        figures=(change(printed("427"), printed("423")),),
    )


CLAIM = Claim(
    text="At 300M, sharing key and value trains 0.9% faster.",
    source=STUDY,
    place="table 4, tokens per second",
    quantity="training tokens a second of `q,k=v` at 300M, percent above `q,k,v`",
    stated=(printed("0.9", "%"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Elsewhere("training steps of both arms of gpt-300m, timed on a GPU")),
)
