"""Tables of the study as it prints them: what several claims are computed from.

Perplexities are of one run each, and padding counts among their targets: text that is never
harder than what it follows makes all of them, and their distances, smaller.
"""

import math
from collections.abc import Mapping

from qkvbench.claims._arithmetic import Point
from qkvbench.claims._figure import Figure, change, printed
from qkvbench.claims._models import kept, study_1_2b, study_300m
from qkvbench.model import Model

# arXiv:2606.04032, table 4: validation perplexity of the 300M models.
PERPLEXITY_300M = {
    "q,k,v": printed("5.11"),
    "q,k=v": printed("5.27"),
    "q=k,v": printed("5.36"),
    "q=k=v": printed("6.41"),
    "q,k,v/4": printed("5.15"),
    "q,k,v/1": printed("5.19"),
    "q,k=v/4": printed("5.32"),
    "q,k=v/1": printed("5.36"),
}

# arXiv:2606.04032, table 10: the 1.2B models; of q,k=v/8 no perplexity is known.
PERPLEXITY_1_2B = {
    "q,k,v": printed("5.004"),
    "q,k=v": printed("5.128"),
    "q,k,v/8": printed("5.030"),
    "q,k,v/1": printed("5.057"),
    "q,k=v/1": printed("5.212"),
}

# The same table: cache at 32,768 tokens, in the unit that it gives for all of them.
CACHE_1_2B = {
    "q,k,v": printed("5,900", "MB", step=100),
    "q,k=v": printed("2,950", "MB", step=10),
    "q,k,v/8": printed("1,408", "MB"),
    "q,k,v/1": printed("176", "MB"),
    "q,k=v/1": printed("88", "MB"),
}

# Accuracy on sorting, in the table of synthetic tasks: over all lengths and sizes.
SORT = {
    "q,k,v": printed("0.971"),
    "q,k=v": printed("0.958"),
    "q=k,v": printed("0.967"),
    "q=k=v": printed("0.939"),
}

# Five-shot accuracy of the 1.2B models in percent, from one secondary source (table 11).
FIVE_SHOT = {
    "q,k,v": printed("36.40", "%"),
    "q,k=v": printed("35.99", "%"),
    "q,k,v/8": printed("35.86", "%"),
    "q,k=v/8": printed("36.72", "%"),
    "q,k=v/1": printed("34.38", "%"),
}

# The baseline's accuracy on each of them, and how many questions the public split has:
# ARC challenge and easy arXiv:1803.05457, HellaSwag arXiv:1905.07830, PIQA arXiv:1911.11641,
# WinoGrande arXiv:1907.10641.
FIVE_SHOT_PARTS = {
    "ARC challenge": (19.03, 1172, 25),
    "ARC easy": (30.01, 2376, 25),
    "HellaSwag": (26.15, 10_042, 25),
    "PIQA": (56.64, 1838, 50),
    "WinoGrande": (50.20, 1267, 50),
}

# From the authors' later model card and branches: 300M models retrained on other text, with a
# mask that leaves padding out; validation loss in nats a token.
LATER_PERPLEXITY = {"q,k,v": printed("20.818"), "q,k=v": printed("21.280")}
LATER_LOSS_NATS = printed("3.058")


def points_300m() -> dict[str, Point]:
    """Perplexity and cache kept, for each variant of the 300M table."""
    return _points(PERPLEXITY_300M, study_300m())


def points_1_2b() -> dict[str, Point]:
    """The same at 1.2B."""
    return _points(PERPLEXITY_1_2B, study_1_2b())


def loss_300m(variant: str) -> Figure:
    """Perplexity lost against `q,k,v` at 300M, percent, from the printed perplexities."""
    return change(PERPLEXITY_300M[variant], PERPLEXITY_300M["q,k,v"])


def loss_1_2b(variant: str) -> Figure:
    """The same at 1.2B."""
    return change(PERPLEXITY_1_2B[variant], PERPLEXITY_1_2B["q,k,v"])


def free_share() -> float:
    """The share of targets that cost nothing which turns the later perplexity into the first.

    The corpora differ, so this is a size that padding may have had, not a measurement of it.
    """
    first, later = (table["q,k=v"].value for table in (PERPLEXITY_300M, LATER_PERPLEXITY))
    return 1 - math.log(first) / math.log(later)


def on_text(loss_percent: float, free: float) -> float:
    """A loss in percent of perplexity, if a share `free` of the targets costs nothing."""
    return 100 * ((1 + loss_percent / 100) ** (1 / (1 - free)) - 1)


def _points(table: Mapping[str, Figure], model: Model) -> dict[str, Point]:
    return {arm: Point(loss, kept(model, arm)) for arm, loss in table.items()}
