"""Five-shot accuracy of `q,k=v` at 1.2B."""

from qkvbench.claims import STUDY, Arithmetic, Claim
from qkvbench.claims._accuracy import FiveShot, arithmetic
from qkvbench.claims._reported import FIVE_SHOT

ARM = "q,k=v"


def _arithmetic() -> Arithmetic:
    return arithmetic(ARM)


CLAIM = Claim(
    text="At 1.2B, sharing key and value loses 0.41 points of five-shot accuracy.",
    source=STUDY,
    place="table 11 and slide 8, seen in one secondary source",
    quantity="mean five-shot accuracy of `q,k=v` on five benchmarks, beside that of `q,k,v`",
    stated=(FIVE_SHOT[ARM],),
    arithmetic=_arithmetic,
    tests=(FiveShot(ARM, "lower"),),
)
