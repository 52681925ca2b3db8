"""Total cost, against the article's own table of costs."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import printed, reduction

# Dollars for a million tokens, today and with fewer projections: both ends of each segment.
COSTS = (
    ("0.50", "0.30"),
    ("5.00", "3.00"),
    ("0.10", "0.05"),
    ("0.50", "0.30"),
    ("2.00", "1.00"),
    ("10.00", "6.00"),
    ("0.50", "0.20"),
    ("2.00", "1.00"),
)


def _arithmetic() -> Arithmetic:
    saved = sorted(
        (reduction(printed(new), printed(old)) for old, new in COSTS), key=lambda each: each.value
    )
    return Arithmetic(
        says=f"The article's own table of costs for a million tokens saves {saved[0].value:.0f} to "
        f"{saved[-1].value:.0f}%. Both hold only if much of the total is no cost of tokens.",
        figures=(saved[0], saved[-1]),
    )


CLAIM = Claim(
    text="Deployment costs fall by 25 to 35% in total.",
    source=ARTICLE,
    place="text, against the table of costs",
    quantity="smallest and largest saving over the segments of its table, percent",
    stated=(printed("25", "%"), printed("35", "%")),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
