"""Tables of the study as it prints them; several claims are computed from them.

Perplexities are of one run each, and padding is among their targets: targets that are easy to
predict make all perplexities, and the differences between them, smaller.
"""

import math

from qkvbench.claims.kit.arithmetic import Point
from qkvbench.claims.kit.figure import Figure, change, figure
from qkvbench.claims.kit.models import cache_ratio, study_1_2b, study_300m

# arXiv:2606.04032, table 4: validation perplexity of the 300M models.
PERPLEXITY_300M = {
    "q,k,v": figure("5.11"),
    "q,k=v": figure("5.27"),
    "q=k,v": figure("5.36"),
    "q=k=v": figure("6.41"),
    "q,k,v/4": figure("5.15"),
    "q,k,v/1": figure("5.19"),
    "q,k=v/4": figure("5.32"),
    "q,k=v/1": figure("5.36"),
}

# arXiv:2606.04032, table 10: the 1.2B models; of q,k=v/8 no perplexity is known.
PERPLEXITY_1_2B = {
    "q,k,v": figure("5.004"),
    "q,k=v": figure("5.128"),
    "q,k,v/8": figure("5.030"),
    "q,k,v/1": figure("5.057"),
    "q,k=v/1": figure("5.212"),
}

# The same table: cache at 32,768 tokens, in the unit that it gives for all of them.
CACHE_1_2B = {
    "q,k,v": figure("5,900", "MB", step=100),
    "q,k=v": figure("2,950", "MB", step=10),
    "q,k,v/8": figure("1,408", "MB"),
    "q,k,v/1": figure("176", "MB"),
    "q,k=v/1": figure("88", "MB"),
}

# Accuracy on sorting, in the table of synthetic tasks: over all lengths and sizes.
SORT = {
    "q,k,v": figure("0.971"),
    "q,k=v": figure("0.958"),
    "q=k,v": figure("0.967"),
    "q=k=v": figure("0.939"),
}

# Five-shot accuracy of the 1.2B models in percent, from one secondary source (table 11).
FIVE_SHOT = {
    "q,k,v": figure("36.40", "%"),
    "q,k=v": figure("35.99", "%"),
    "q,k,v/8": figure("35.86", "%"),
    "q,k=v/8": figure("36.72", "%"),
    "q,k=v/1": figure("34.38", "%"),
}

# The baseline's accuracy in percent, questions in the public split, and chance in percent:
# ARC challenge and easy arXiv:1803.05457, HellaSwag arXiv:1905.07830, PIQA arXiv:1911.11641,
# WinoGrande arXiv:1907.10641.
FIVE_SHOT_BENCHMARKS = {
    "ARC challenge": (19.03, 1172, 25),
    "ARC easy": (30.01, 2376, 25),
    "HellaSwag": (26.15, 10_042, 25),
    "PIQA": (56.64, 1838, 50),
    "WinoGrande": (50.20, 1267, 50),
}

# From the authors' later model card and branches: 300M models retrained on other text, with a
# mask that leaves padding out; validation loss in nats a token.
LATER_PERPLEXITY = {"q,k,v": figure("20.818"), "q,k=v": figure("21.280")}
LATER_LOSS_NATS = figure("3.058")


# Perplexities with the model, by its size.
TABLES = {"300M": (PERPLEXITY_300M, study_300m), "1.2B": (PERPLEXITY_1_2B, study_1_2b)}


def points(size: str) -> dict[str, Point]:
    """Perplexity and share of the baseline's cache, for each variant of the table of this size."""
    table, model = TABLES[size]
    return {arm: Point(loss, cache_ratio(model(), arm)) for arm, loss in table.items()}


def loss(arm: str, size: str = "300M") -> Figure:
    """Perplexity lost against `q,k,v`, percent, from the printed perplexities."""
    table, _ = TABLES[size]
    return change(table[arm], table["q,k,v"])


def padding_share() -> float:
    """The share of padding, at no loss, that would turn the later perplexity into the first.

    The corpora differ, so this is a possible share of padding, not a measurement of it.
    """
    first, later = (table["q,k=v"].value for table in (PERPLEXITY_300M, LATER_PERPLEXITY))
    return 1 - math.log(first) / math.log(later)


def loss_on_text(loss_percent: float, padding: float) -> float:
    """A loss of perplexity in percent, with the given share of padding, at no loss, left out."""
    return 100 * ((1 + loss_percent / 100) ** (1 / (1 - padding)) - 1)
