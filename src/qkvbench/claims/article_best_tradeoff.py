"""Whether tying beats all other ways to save."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Undominated, dominators, frontier
from qkvbench.claims._reported import points_300m

TIED = ("q,k=v", "q=k,v", "q=k=v")


def _arithmetic() -> Arithmetic:
    table = points_300m()
    beaten = "; ".join(
        f"`{arm}` by {', '.join(f'`{name}`' for name in dominators(table, arm))}" for arm in TIED
    )
    best = " · ".join(f"`{arm}`" for arm in frontier(table))
    return Arithmetic(
        says=f"In the study's 300M table, perplexity against cache, one run each, dominated: "
        f"{beaten}. Not dominated: {best}."
    )


CLAIM = Claim(
    text="Removing projections is the best trade-off of all methods that make attention cheaper.",
    source=ARTICLE,
    place="conclusion, as an account of the study",
    quantity="dominance in perplexity and cache of the three ties in the study's 300M table",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Undominated(points_300m, TIED),),
)
