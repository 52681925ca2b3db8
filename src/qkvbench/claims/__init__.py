"""What a claim is. Each file of this folder is one claim of the literature: its name is the file's.

A claim's module has one value, `CLAIM`: what is claimed, in our words; where; its figures as
printed; what arithmetic bounds it; and the tests that give the verdict. A verdict is computed, from
shapes, from the source's own figures or from the stores of studies, and never typed. The figures of
the sources stand in this folder and nowhere else in the package. To add a claim, add a file.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qkvbench.claims._arithmetic import (
    AtMost,
    Computed,
    Consistent,
    Elsewhere,
    OwnFigures,
    Point,
    Undominated,
    dominators,
    frontier,
)
from qkvbench.claims._claim import (
    ARTICLE,
    MEANINGS,
    SOURCES,
    STUDY,
    VERDICTS,
    Arithmetic,
    Claim,
    Finding,
    Source,
    Test,
    Verdict,
    judge,
)
from qkvbench.claims._evidence import Piece, Shown, opened
from qkvbench.claims._figure import Figure
from qkvbench.claims._runs import Runs, Scale

__all__ = [
    "ARTICLE",
    "MEANINGS",
    "SOURCES",
    "STUDY",
    "VERDICTS",
    "Arithmetic",
    "AtMost",
    "Claim",
    "Computed",
    "Consistent",
    "Elsewhere",
    "Entry",
    "Figure",
    "Finding",
    "OwnFigures",
    "Piece",
    "Point",
    "Runs",
    "Scale",
    "Shown",
    "Source",
    "Test",
    "Undominated",
    "Verdict",
    "dominators",
    "find",
    "frontier",
    "judge",
    "ledger",
    "names",
    "opened",
]


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: a claim under its name, and what was found of it."""

    name: str
    claim: Claim
    finding: Finding


def names() -> list[str]:
    """All claims, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    )


def find(name: str) -> Claim:
    """The claim with this name; KeyError where there is none."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").CLAIM


def ledger(shown: Sequence[Shown] = ()) -> Iterator[Entry]:
    """Every claim with its verdict, given what these stores show."""
    for name in names():
        claim = find(name)
        yield Entry(name, claim, judge(claim, shown))
