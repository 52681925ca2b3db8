"""Tables of the article and of the study as printed; several claims are computed from them.

The study's perplexities are of one run each, and padding is among their targets: targets that are
easy to predict make all perplexities, and the differences between them, smaller.
"""

import math
from dataclasses import dataclass

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

# Training speed of the 300M models, thousands of tokens a second (table 4).
SPEED_300M = {
    "q,k,v": figure("423", "k"),
    "q,k=v": figure("427", "k"),
    "q=k,v": figure("440", "k"),
    "q=k=v": figure("460", "k"),
    "q,k,v/4": figure("435", "k"),
    "q,k,v/1": figure("448", "k"),
    "q,k=v/4": figure("442", "k"),
    "q,k=v/1": figure("455", "k"),
}


def _row(*texts: str) -> tuple[Figure, ...]:
    return tuple(figure(text) for text in texts)


# Accuracies on reverse, sort, subtract, swap and copy: over all lengths and sizes, 3 runs.
# `+2d` stands for the study's variants marked +.
SYNTHETIC_TASKS = ("reverse", "sort", "subtract", "swap", "copy")
SYNTHETIC = {
    "q,k,v": _row("0.698", "0.971", "1.000", "0.588", "1.000"),
    "q=k,v": _row("0.705", "0.967", "1.000", "0.597", "1.000"),
    "q=k,v+2d": _row("0.718", "0.963", "1.000", "0.671", "1.000"),
    "q,k=v": _row("0.701", "0.958", "1.000", "0.590", "1.000"),
    "q=k=v": _row("0.514", "0.939", "1.000", "0.446", "1.000"),
    "q=k=v+2d": _row("0.581", "0.957", "1.000", "0.576", "1.000"),
}
SORT = {arm: row[1] for arm, row in SYNTHETIC.items()}

# Averages of the same tasks in the authors' later 3,240 seeded runs (commit f5dad78).
LATER_SYNTHETIC = {
    "q,k,v": figure("0.758"),
    "q=k,v": figure("0.724"),
    "q=k,v+2d": figure("0.761"),
    "q,k=v": figure("0.751"),
    "q=k=v": figure("0.651"),
    "q=k=v+2d": figure("0.700"),
}

# Accuracies on MNIST, FashionMNIST, CIFAR-10, CIFAR-100 and the anomaly task.
VISION = {
    "q,k,v": _row("0.981", "0.887", "0.663", "0.363", "0.942"),
    "q=k,v": _row("0.981", "0.885", "0.666", "0.369", "0.954"),
    "q,k=v": _row("0.976", "0.883", "0.659", "0.358", "0.949"),
    "q=k=v": _row("0.978", "0.877", "0.672", "0.376", "0.933"),
    "q=k=v+2d": _row("0.977", "0.875", "0.669", "0.364", "0.961"),
}

# ImageNet-1k accuracy in the authors' later draft (commit a2708ab), one seed; the batches differ.
LATER_IMAGENET = {"q=k=v": figure("70.74", "%"), "q=k=v+2d": figure("66.76", "%")}

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


# The same models after their key and value were tied without training, and after 500M tokens of
# distillation: key and value averaged, the value kept, the key kept.
CONVERTED = {"averaged": figure("6,430"), "value": figure("7,347"), "key": figure("13,345")}
HEALED = {"averaged": figure("22.87"), "value": figure("27.00"), "key": figure("29.00")}


@dataclass(frozen=True)
class Row:
    """A row of the article's table of results: millions, scores, milliseconds, gigabytes."""

    name: str
    parameters: Figure
    glue: Figure
    bleu: Figure
    latency: Figure
    memory: Figure


def _results(name: str, parameters: str, glue: str, bleu: str, latency: str, memory: str) -> Row:
    return Row(
        name,
        figure(parameters, "M"),
        figure(glue),
        figure(bleu),
        figure(latency, "ms"),
        figure(memory, "GB"),
    )


ARTICLE = {
    "q,k,v": _results("Canonical QKV", "125", "85.2", "28.4", "12.3", "2.1"),
    "q=k,v": _results("No Key", "110", "84.9", "28.1", "10.8", "1.8"),
    "q=k=v": _results("Shared QKV", "84", "84.7", "28.0", "9.5", "1.5"),
    "q=k=x,v": _results("Value-only", "42", "77.5", "24.1", "7.2", "1.1"),
    "q=k=v=x": _results("No projections", "0", "62.3", "18.9", "5.1", "0.8"),
}
CHANGED = tuple(arm for arm in ARTICLE if arm != "q,k,v")

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
