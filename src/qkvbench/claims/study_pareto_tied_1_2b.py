"""Sharing key and value on the frontier at 1.2B."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Undominated, dominators, frontier
from qkvbench.claims._reported import points_1_2b

ARMS = ("q,k=v",)


def _arithmetic() -> Arithmetic:
    table = points_1_2b()
    beaten = "; ".join(
        f"`{arm}` by {', '.join(f'`{name}`' for name in dominators(table, arm)) or 'none'}"
        for arm in ARMS
    )
    best = " · ".join(f"`{arm}`" for arm in frontier(table))
    return Arithmetic(
        says=f"By its own table, one run each, dominated: {beaten}. Frontier: {best}."
    )


CLAIM = Claim(
    text="At 1.2B, sharing key and value is on the frontier of quality against cache.",
    source=STUDY,
    place="table 10",
    quantity="dominance in validation perplexity and cache among the 1.2B models",
    stated=(),
    arithmetic=_arithmetic,
    tests=(Undominated(points_1_2b, ARMS),),
)
