"""The ledger: claims of the literature with computed verdicts.

Each module of this folder is a table of claims about one quantity, its value `CLAIMS`. A row has
the claim in our words, its place in the source, the figures as printed, the arithmetic on them,
and the tests that give the verdict. A verdict is computed from shapes, from the source's own
figures or from the stores of studies, and never typed. The figures of the sources are in this
folder and nowhere else in the package. To add a claim, add a row to a table.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from qkvbench.claims.kit.claim import (
    MEANINGS,
    SOURCES,
    VERDICTS,
    Arithmetic,
    Claim,
    Direction,
    Finding,
    OtherScale,
    Verdict,
    judge,
)
from qkvbench.claims.kit.evidence import Pool, StoreView, of_study, open_store, pool

__all__ = [
    "MEANINGS",
    "SOURCES",
    "VERDICTS",
    "Arithmetic",
    "Claim",
    "Direction",
    "Entry",
    "Finding",
    "OtherScale",
    "Pool",
    "StoreView",
    "Verdict",
    "find",
    "judge",
    "ledger",
    "names",
    "of_study",
    "open_store",
    "pool",
]


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger: a claim and the finding on it."""

    claim: Claim
    finding: Finding


def names() -> list[str]:
    """The names of all claims, in the order of the ledger."""
    return [claim.name for claim in _claims()]


def find(name: str) -> Claim:
    """The claim with this name; KeyError if there is none."""
    return {claim.name: claim for claim in _claims()}[name]


def ledger(
    stores: Sequence[StoreView] = (), *, chosen: Sequence[str] | None = None
) -> Iterator[Entry]:
    """Every claim, or the chosen ones, with its verdict, given all that these folders hold."""
    together = pool(stores)
    for claim in _claims():
        if chosen is None or claim.name in chosen:
            yield Entry(claim, judge(claim, together))


@cache
def _claims() -> tuple[Claim, ...]:
    """The rows of all tables, sorted by name. `kit` is a package and thus no table."""
    tables = (
        importlib.import_module(f"{__name__}.{module.name}").CLAIMS
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
    )
    return tuple(sorted((claim for table in tables for claim in table), key=lambda c: c.name))
