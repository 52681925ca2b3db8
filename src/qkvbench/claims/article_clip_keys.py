"""Keys in models of image and text."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Runs
from qkvbench.claims._scales import TWO_TOWERS


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Nothing bounds it: both sides are losses of quality, in units that have nothing in "
        'common, so of "more" only this can be tested: whether two towers lose by a missing key.'
    )


CLAIM = Claim(
    text="In CLIP-style models of image and text, keys matter more than in language models.",
    source=ARTICLE,
    place="text on limits",
    quantity="what `q=k,v` loses in two towers",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Runs("q=k,v", "worse", ("clip", "clip-de"), TWO_TOWERS),),
    recipe="towers",
)
