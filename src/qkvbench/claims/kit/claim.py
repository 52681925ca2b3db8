"""A claim, the finding on it, and the order in which its tests are tried."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from qkvbench.claims.kit.evidence import Evidence, Pool
from qkvbench.claims.kit.figure import Figure

# In the order in which the ledger is printed.
Verdict = Literal[
    "impossible",
    "refuted",
    "supported",
    "not distinguishable",
    "not yet run",
    "not testable here",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

MEANINGS: dict[Verdict, str] = {
    "impossible": "arithmetic rules it out: no run can give this result",
    "refuted": "the source's own figures, a check on this machine, or runs at the claim's own "
    "scale contradict the claim",
    "supported": "the claim follows from shapes, from the source's own figures, or from runs at "
    "the claim's own scale",
    "not distinguishable": "the available figures or runs fit both the claim and its contrary",
    "not yet run": "a recipe of this bench tests it at its own scale, and none of the given "
    "folders has its runs",
    "not testable here": "a test needs something that this bench lacks; runs and measurements at a "
    "smaller scale show a direction at most, and do not decide the claim",
}

# The result of runs or measurements that are not at a claim's own scale.
Direction = Literal["same direction", "opposite direction", "no direction seen"]


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
class OtherScale:
    """The direction that runs or measurements show which are not at the claim's own scale.

    ``distance`` says in which respects they are not, ``result`` what they found.
    """

    direction: Direction
    distance: str
    result: str
    evidence: tuple[Evidence, ...] = ()

    @property
    def label(self) -> str:
        """The direction, as it is printed in place of a verdict."""
        return f"{self.direction} at a smaller scale"

    @property
    def summary(self) -> str:
        """The first result that shows the direction."""
        return self.evidence[0].short if self.evidence else self.result

    @property
    def reason(self) -> str:
        """The distance from the claim's scale, then the result."""
        return f"{self.distance}: {self.result}"


@dataclass(frozen=True)
class Finding:
    """A verdict and its reason, in which equations are quoted by backquotes.

    ``requires`` names a missing condition of a test. ``evidence`` are the runs that decide;
    ``other_scale`` is the direction of those that are not at the claim's own scale. ``decided_by``
    is the pair of a stated figure and the computed one that differ, or the first pair.
    """

    verdict: Verdict
    reason: str
    requires: str = ""
    evidence: tuple[Evidence, ...] = ()
    other_scale: OtherScale | None = None
    decided_by: tuple[Figure, Figure] | None = None

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
    gives the verdict; the last always can. ``recipe`` names the study whose runs bear on it,
    ``benchmark`` the file in `benchmarks/` whose measurements do.
    """

    name: str
    text: str
    place: str
    quantity: str
    arithmetic: Callable[[], Arithmetic]
    tests: "tuple[Test, ...]"
    figures: tuple[Figure, ...] = ()
    recipe: str | None = None
    benchmark: str | None = None

    @property
    def command(self) -> str | None:
        """The command whose results bear on the claim; None if there is none."""
        if self.benchmark is not None:
            return f"python benchmarks/{self.benchmark}.py"
        return None if self.recipe is None else f"qkvbench run {self.recipe}"

    @property
    def source(self) -> Source:
        """The source, by the first word of the name."""
        return next(source for source in SOURCES if source.name == self.name.split("-")[0])


class Test(Protocol):
    """One way to decide a claim."""

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """The finding from arithmetic or from runs; None if the test cannot decide."""
        ...


@runtime_checkable
class Observation(Protocol):
    """A test that reads runs or measurements, whose direction is reported in any case."""

    def direction(self, pool: Pool) -> OtherScale | None:
        """The direction of all that is not at the claim's own scale; None without any."""
        ...


def judge(claim: Claim, pool: Pool) -> Finding:
    """The verdict on a claim, given these runs."""
    finding = next(filter(None, (test.finding(claim, pool) for test in claim.tests)), None)
    assert finding is not None, f"no test decides: {claim.name}"
    observations = (test for test in claim.tests if isinstance(test, Observation))
    directions = (test.direction(pool) for test in observations)
    return replace(finding, other_scale=next(filter(None, directions), None))
