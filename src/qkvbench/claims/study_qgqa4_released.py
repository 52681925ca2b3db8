"""The 300M model called Q-GQA-4, as released."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import exact, percent, printed, share, whole
from qkvbench.claims._models import kept, study_300m, total


def _arithmetic() -> Arithmetic:
    model = study_300m()
    four, eight = total(model, "q,k=v/4"), total(model, "q,k=v/8")
    saved = [percent(1 - kept(model, arm)) for arm in ("q,k=v/4", "q,k=v/8")]
    return Arithmetic(
        says=f"With four groups there are {four:,} and {saved[0]} is saved; with the eight of the "
        f"released configuration {eight:,} and {saved[1]}. No number of groups gives both.",
        figures=(exact(four, f"{four:,} with four groups"), share(1 - kept(model, "q,k=v/4"))),
    )


CLAIM = Claim(
    text=("Q-GQA-4 has four groups, the released parameter count, and saves 87.5% of the cache."),
    source=STUDY,
    place="table 4 and released configuration",
    quantity="parameters of `q,k=v/4` at 300M, and cache saved, percent",
    stated=(whole(274_046_976), printed("87.5", "%")),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
