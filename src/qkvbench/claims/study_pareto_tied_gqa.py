"""Sharing on top of four groups, on the frontier at 300M."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Undominated, dominators, frontier
from qkvbench.claims._reported import points_300m

ARMS = ("q,k=v/4",)


def _arithmetic() -> Arithmetic:
    table = points_300m()
    beaten = "; ".join(
        f"`{arm}` by {', '.join(f'`{name}`' for name in dominators(table, arm)) or 'none'}"
        for arm in ARMS
    )
    best = " · ".join(f"`{arm}`" for arm in frontier(table))
    return Arithmetic(
        says=f"By its own table, one run each, dominated: {beaten}. Frontier: {best}."
    )


CLAIM = Claim(
    text="At 300M, sharing key and value on top of four groups is on the frontier too.",
    source=STUDY,
    place="slide 7 and poster, by table 4",
    quantity="dominance in validation perplexity and cache among the 300M models",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Undominated(points_300m, ARMS),),
)
