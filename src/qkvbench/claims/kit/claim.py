"""A claim, the finding on it, and the order in which its tests are tried."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from qkvbench.claims.kit.evidence import Evidence, StoreView
from qkvbench.claims.kit.figure import Figure

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
    "supported": "the claim follows from shapes, from the source's own figures, or from runs at "
    "the claim's own scale",
    "refuted": "the source's own figures, or runs at the claim's own scale, contradict the claim",
    "impossible": "arithmetic rules it out: no run can give this result",
    "not distinguishable": "the available figures or runs fit both the claim and its contrary",
    "not testable here": "a test needs something that this bench lacks; runs at a smaller scale "
    "are reported too, and do not decide the claim",
    "not yet run": "a recipe of this bench tests it, and none of the given stores has its runs",
}


@dataclass(frozen=True)
class Source:
    """The origin of claims: a short name, a description, and its key in docs/references.bib."""

    name: str
    about: str
    citation: str


SOURCES = (
    Source("article", "a news article on the study, June 2026", "article2026projections"),
    Source("study", "arXiv:2606.04032", "kayyam2026projections"),
)


@dataclass(frozen=True)
class Arithmetic:
    """Everything about a claim that can be computed without a run.

    ``figures`` correspond to those of the claim one by one, in order and unit; they are empty if
    there is nothing to compare. ``text`` is the conclusion, in a sentence or two.
    """

    text: str
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A verdict and its reason, in which equations are quoted by backquotes.

    ``requires`` names a missing condition of a test. ``evidence`` are the runs that decide;
    ``other_scale`` is the finding from runs that are not at the claim's own scale.
    """

    verdict: Verdict
    reason: str
    requires: str = ""
    evidence: tuple[Evidence, ...] = ()
    other_scale: "Finding | None" = None

    @property
    def summary(self) -> str:
        """The reason in one sentence."""
        if self.requires:
            return f"Takes {self.requires}."
        return re.split(r"(?<=\.) (?=[A-Z])", self.reason, maxsplit=1)[0]


@dataclass(frozen=True)
class Claim:
    """A claim of the literature in our words, and how it is decided.

    ``name`` is its unique key in the ledger, and begins with the source's name. ``figures`` are
    those of the source as printed. ``tests`` are tried in order, and the first that can decide
    gives the verdict; the last always can. ``recipe`` names the study whose runs bear on it.
    """

    name: str
    text: str
    place: str
    quantity: str
    arithmetic: Callable[[], Arithmetic]
    tests: "tuple[Test, ...]"
    figures: tuple[Figure, ...] = ()
    recipe: str | None = None

    @property
    def source(self) -> Source:
        """The source, by the first word of the name."""
        return next(source for source in SOURCES if source.name == self.name.split("-")[0])


@runtime_checkable
class Test(Protocol):
    """One way to decide a claim."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding | None:
        """The finding from arithmetic or from stores; None if the test cannot decide."""
        ...


@runtime_checkable
class RunTest(Protocol):
    """A test that reads runs, whose result is reported even if another test decides."""

    def finding_at_own_scale(self, stores: Sequence[StoreView]) -> Finding | None:
        """The finding from runs about models of the runs' own size; None without runs."""
        ...


def judge(claim: Claim, stores: Sequence[StoreView] = ()) -> Finding:
    """The verdict on a claim, given the runs in these stores."""
    for test in claim.tests:
        finding = test.finding(claim, stores)
        if finding is not None:
            return finding if isinstance(test, RunTest) else _with_runs(finding, claim, stores)
    raise AssertionError(f"no test decides: {claim.name}")


def _with_runs(finding: Finding, claim: Claim, stores: Sequence[StoreView]) -> Finding:
    """A finding from arithmetic, together with the one from runs."""
    run_tests = (test for test in claim.tests if isinstance(test, RunTest))
    from_runs = (test.finding_at_own_scale(stores) for test in run_tests)
    return replace(finding, other_scale=next(filter(None, from_runs), None))
