"""Keys in models of image and text."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere


def _arithmetic() -> Arithmetic:
    return Arithmetic(says="Nothing bounds it: both sides are losses of quality.")


CLAIM = Claim(
    text="In CLIP-style models of image and text, keys matter more than in language models.",
    source=ARTICLE,
    place="text on limits",
    quantity="what `q=k,v` loses in two towers, beside what it loses in a decoder",
    stated=(),
    arithmetic=_arithmetic,
    tests=(
        Elsewhere(
            "a model of two towers, a task of image-text pairs, and several seeds of each arm"
        ),
    ),
)
