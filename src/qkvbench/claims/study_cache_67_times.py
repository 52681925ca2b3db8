"""The largest reduction of the cache that is claimed."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import exact, printed
from qkvbench.claims._models import kept, study_1_2b
from qkvbench.claims._reported import CACHE_1_2B


def _arithmetic() -> Arithmetic:
    heads = study_1_2b().geometry.heads
    ratio = 1 / kept(study_1_2b(), "q,k=v/1")
    slip = CACHE_1_2B["q,k,v"].value / CACHE_1_2B["q,k=v/1"].value
    return Arithmetic(
        says=f"Two tensors of {heads} heads become one of one head. Its own table gives "
        f"{slip:.0f}× only because it divides decimal megabytes by binary ones.",
        figures=(exact(ratio, f"{ratio:.0f}×"),),
    )


CLAIM = Claim(
    text="One head that is both key and value makes the cache of the 1.2B model 67 times smaller.",
    source=STUDY,
    place="poster; table 10",
    quantity="cache of `q,k,v` at 1.2B, times that of `q,k=v/1`",
    stated=(printed("67", "×"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
