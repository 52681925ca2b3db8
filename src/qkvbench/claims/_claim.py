"""What a claim is, what can be found of it, and how its tests are asked in turn."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from qkvbench.claims._evidence import Piece, Shown
from qkvbench.claims._figure import Figure

Verdict = Literal[
    "supported",
    "refuted",
    "impossible",
    "not distinguishable",
    "not testable here",
    "not yet run",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

MEANINGS: dict[Verdict, str] = {
    "supported": "what is claimed follows: from shapes, from the source's own figures, or from "
    "runs at the claim's own scale",
    "refuted": "what is claimed is contradicted: by the source's own figures, or by runs at the "
    "claim's own scale",
    "impossible": "arithmetic rules it out: no run can come out so",
    "not distinguishable": "the figures or runs at hand fit the claim and its contrary",
    "not testable here": "it takes what this bench lacks; what runs show at a smaller scale stands "
    "beside it and does not decide it",
    "not yet run": "a recipe of this bench tests it, and no store that was given holds its runs",
}


@dataclass(frozen=True)
class Source:
    """Where claims come from: a short name, words for it, and its key in docs/references.bib."""

    name: str
    about: str
    citation: str


ARTICLE = Source("article", "a news article on the study, June 2026", "article2026projections")
STUDY = Source("study", "arXiv:2606.04032", "kayyam2026projections")
SOURCES = (ARTICLE, STUDY)


@dataclass(frozen=True)
class Arithmetic:
    """What can be computed about a claim without a run.

    ``figures`` has one figure for each that the claim states, in the same order and unit, where
    there is something to compare; ``says`` is what follows, in a sentence or two.
    """

    says: str
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A verdict and why. Equations stand between backquotes.

    ``takes`` is what a test would need that is not here. ``pieces`` are the runs that speak to
    the claim; ``here`` is what those say that are not at the claim's own scale.
    """

    verdict: Verdict
    why: str
    takes: str = ""
    pieces: tuple[Piece, ...] = ()
    here: "Finding | None" = None

    @property
    def brief(self) -> str:
        """What the verdict rests on, in one sentence."""
        if self.takes:
            return f"Takes {self.takes}."
        return re.split(r"(?<=\.) (?=[A-Z])", self.why, maxsplit=1)[0]


@dataclass(frozen=True)
class Claim:
    """A claim of the literature in our words, and what decides it.

    ``stated`` are its figures as printed. ``tests`` are asked in order, and the first that can
    decide gives the verdict; the last always can. ``recipe`` names the study whose runs bear on it.
    """

    text: str
    source: Source
    place: str
    quantity: str
    stated: tuple[Figure, ...]
    arithmetic: Callable[[], Arithmetic]
    tests: "tuple[Test, ...]"
    recipe: str | None = None


@runtime_checkable
class Test(Protocol):
    """One way to decide a claim."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """What it finds, from arithmetic or from stores; None where it cannot decide."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A test that reads runs, and so has something to show beside another test's verdict."""

    def beside(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """What runs say at their own scale; None where they say nothing."""
        ...


def judge(claim: Claim, shown: Sequence[Shown] = ()) -> Finding:
    """The verdict on a claim, given what these stores show."""
    for test in claim.tests:
        found = test.finding(claim, shown)
        if found is not None:
            return found if isinstance(test, Observing) else _with_runs(found, claim, shown)
    raise AssertionError(f"no test decides: {claim.text}")


def _with_runs(found: Finding, claim: Claim, shown: Sequence[Shown]) -> Finding:
    """A verdict by arithmetic, with what runs say beside it."""
    observing = (test for test in claim.tests if isinstance(test, Observing))
    said = (test.beside(claim, shown) for test in observing)
    return replace(found, here=next((each for each in said if each is not None), None))
