"""The parameter counts of the 300M models."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import exact, whole
from qkvbench.claims._models import study_300m, total

COUNTS = {
    "q,k,v": 305_534_976,
    "q=k,v": 284_542_976,
    "q,k=v": 284_542_976,
    "q=k=v": 263_550_976,
    "q,k,v/4": 274_046_976,
    "q,k,v/1": 266_174_976,
    "q,k=v/1": 264_862_976,
}


def _arithmetic() -> Arithmetic:
    totals = {arm: total(study_300m(), arm) for arm in COUNTS}
    right = sum(totals[arm] == count for arm, count in COUNTS.items())
    return Arithmetic(
        says=f"{right} of {len(COUNTS)} counts are those of its architecture, to the last one.",
        figures=tuple(exact(count, f"{count:,}") for count in totals.values()),
    )


CLAIM = Claim(
    text="The seven 300M models have the numbers of parameters that were released with them.",
    source=STUDY,
    place="released parameter counts, 300M",
    quantity="parameters of " + " · ".join(f"`{arm}`" for arm in COUNTS),
    stated=tuple(whole(count) for count in COUNTS.values()),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
