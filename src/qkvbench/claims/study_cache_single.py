"""Cache of one projection."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import printed, share
from qkvbench.claims._models import cache_bytes, kept, study_300m
from qkvbench.cost.units import bytes_text

ARMS = {"q=k=v": "50"}


def _arithmetic() -> Arithmetic:
    model = study_300m()
    sizes = [f"`{arm}` {bytes_text(cache_bytes(model, arm, 1))}" for arm in ("q,k,v", *ARMS)]
    return Arithmetic(
        says=f"Kept of each token at 2 bytes a value: {', '.join(sizes)}.",
        figures=tuple(share(1 - kept(model, arm)) for arm in ARMS),
    )


CLAIM = Claim(
    text="One projection for all halves the cache, as sharing key and value does.",
    source=STUDY,
    place="table 4",
    quantity="cache that `q=k=v` saves of each token at 300M, percent",
    stated=tuple(printed(each, "%") for each in ARMS.values()),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
