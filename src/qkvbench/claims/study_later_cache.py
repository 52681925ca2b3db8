"""The cache column of a later draft on images."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import printed, share
from qkvbench.claims._models import kept, study_300m

KEPT = {"q=k=v": "33", "q=k,v": "50"}


def _arithmetic() -> Arithmetic:
    shares = {arm: kept(study_300m(), arm) for arm in KEPT}
    found = ", ".join(f"`{arm}` {100 * each:.0f}%" for arm, each in shares.items())
    return Arithmetic(
        says=f"A decoder keeps, at any size: {found}, as the published paper says. The draft seems "
        "to count projections; and the image encoder that it is about has no cache.",
        figures=tuple(share(each) for each in shares.values()),
    )


CLAIM = Claim(
    text="One projection for all keeps a third of the cache, using the query as key keeps half.",
    source=STUDY,
    place="authors' later draft on ImageNet, commit a2708ab",
    quantity="cache that `q=k=v` and `q=k,v` keep, percent of that of `q,k,v`",
    stated=tuple(printed(each, "%") for each in KEPT.values()),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
