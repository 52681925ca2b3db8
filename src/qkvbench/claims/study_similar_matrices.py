"""How alike the matrices of key and value are."""

from qkvbench.claims import STUDY, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="That is the weights' cosine at 300M in the authors' later table (commit 4585ac0). "
        " Activations are alike there (CKA 0.70), which may be what was meant.",
        figures=(printed("0.0000"),),
    )


CLAIM = Claim(
    text="The projection matrices of key and value become alike: their cosine is 0.73.",
    source=STUDY,
    place="slide 6",
    quantity="cosine of the key's and the value's projection matrix in a trained 300M `q,k,v`",
    stated=(printed("0.73"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
