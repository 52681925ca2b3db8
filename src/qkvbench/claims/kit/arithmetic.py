"""Tests that need no runs: exact values, bounds, and the consistency of a source's tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qkvbench.claims.kit.claim import Claim, Finding, Verdict
from qkvbench.claims.kit.evidence import Pool
from qkvbench.claims.kit.figure import ROUNDING, Figure, agree, exact_figure, rounds_to

_REPORTED = "the figures reported give"


@dataclass(frozen=True)
class Computed:
    """The quantity follows from shapes alone: the figure is right, or it is impossible."""

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """Supported if every figure is the computed one at its own digits."""
        return _comparison(claim, otherwise="impossible", relation="computed")


@dataclass(frozen=True)
class OwnFigures:
    """The quantity follows from other figures of the source, within their rounding."""

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """Supported or refuted; not distinguishable if the figures agree only within rounding."""
        pairs = _pairs(claim)
        if all(agree(*pair) for pair in pairs) and not all(rounds_to(*pair) for pair in pairs):
            return _finding("not distinguishable", claim, _REPORTED)
        return _comparison(claim, otherwise="refuted", relation=_REPORTED)


@dataclass(frozen=True)
class Consistent:
    """Refuted if the source's own figures exclude the claimed one; otherwise undecided."""

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Refuted, or None."""
        finding = _comparison(claim, otherwise="refuted", relation=_REPORTED)
        return None if finding.verdict == "supported" else finding


@dataclass(frozen=True)
class OtherConditions:
    """The figures computed are of other conditions than the claim's, or may be.

    So they can confirm the claimed ones, and cannot contradict them.
    """

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """Supported if every figure rounds to the printed one, else not distinguishable."""
        right = all(rounds_to(*pair) for pair in _pairs(claim))
        return _finding("supported" if right else "not distinguishable", claim, _REPORTED)


@dataclass(frozen=True)
class AtMost:
    """Impossible if a figure exceeds its upper bound; otherwise undecided."""

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Impossible, or None."""
        over = [(printed, bound) for printed, bound in _pairs(claim) if printed.low > bound.high]
        return _bounded(claim, "at most", *over[0]) if over else None


@dataclass(frozen=True)
class AtLeast:
    """Impossible if a figure is below its lower bound; otherwise undecided."""

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Impossible, or None."""
        under = [(printed, bound) for printed, bound in _pairs(claim) if printed.high < bound.low]
        return _bounded(claim, "at least", *under[-1]) if under else None


@dataclass(frozen=True)
class Reversed:
    """Refuted if the source's later figures have the difference of two arms the other way round.

    ``first`` and ``later`` are the arm's score and the other's. What is later is from more runs.
    """

    first: tuple[Figure, Figure]
    later: tuple[Figure, Figure]

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Refuted, or None."""
        (arm, other), (arm_later, other_later) = self.first, self.later
        if arm.low > other.high and arm_later.high < other_later.low:
            stated = exact_figure(arm.value, f"{arm.text} over {other.text}")
            found = exact_figure(arm_later.value, f"{arm_later.text} under {other_later.text}")
            return Finding("refuted", claim.arithmetic().text, decided_by=(stated, found))
        return None


@dataclass(frozen=True)
class Point:
    """A variant in a source's table: its loss, and its share of the baseline's cache."""

    loss: Figure
    cache: float


@dataclass(frozen=True)
class Undominated:
    """The arms are on the Pareto frontier of the table: less loss and less cache are better."""

    table: Callable[[], Mapping[str, Point]]
    arms: tuple[str, ...]

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """Refuted if a row dominates one of the arms whatever the rounding of the table."""
        table = self.table()
        text = claim.arithmetic().text
        if any(dominators(table, arm) for arm in self.arms):
            return Finding("refuted", text)
        if any(dominators(table, arm, certain=False) for arm in self.arms):
            return Finding("not distinguishable", text)
        return Finding("supported", text)


@dataclass(frozen=True)
class NotTestable:
    """This bench cannot test the claim yet; `requires` names what a test would need."""

    requires: str

    def finding(self, claim: Claim, pool: Pool) -> Finding:
        """Not testable here, with the conclusion of arithmetic."""
        return Finding("not testable here", claim.arithmetic().text, requires=self.requires)


def dominators(table: Mapping[str, Point], arm: str, *, certain: bool = True) -> tuple[str, ...]:
    """The rows that beat `arm` in one column and are no worse in the other.

    If `certain`, for all numbers that round to the printed ones; otherwise for some.
    """
    own = table[arm]

    def dominates(row: Point) -> bool:
        loss = row.loss.high - own.loss.low if certain else row.loss.low - own.loss.high
        better = loss < -ROUNDING or row.cache < own.cache
        return loss <= ROUNDING and row.cache <= own.cache and better

    return tuple(name for name, row in table.items() if name != arm and dominates(row))


def frontier(table: Mapping[str, Point]) -> tuple[str, ...]:
    """The rows that no other row dominates."""
    return tuple(arm for arm in table if not dominators(table, arm))


def _comparison(claim: Claim, *, otherwise: Verdict, relation: str) -> Finding:
    right = all(agree(*pair) for pair in _pairs(claim))
    return _finding("supported" if right else otherwise, claim, relation)


def _bounded(claim: Claim, relation: str, printed: Figure, bound: Figure) -> Finding:
    """Impossible, because the printed figure is beyond its bound."""
    limit = replace(bound, text=f"{relation} {bound.text}")
    reason = f"Stated {printed.text}; {limit.text}. {claim.arithmetic().text}"
    return Finding("impossible", reason, decided_by=(printed, limit))


def _finding(verdict: Verdict, claim: Claim, relation: str) -> Finding:
    """The reason is the first pair of figures that differs, then the conclusion of arithmetic."""
    pairs = _pairs(claim)
    printed, computed = next((pair for pair in pairs if not rounds_to(*pair)), pairs[0])
    reason = f"Stated {printed.text}; {relation} {computed.text}. {claim.arithmetic().text}"
    return Finding(verdict, reason, decided_by=(printed, computed))


def _pairs(claim: Claim) -> list[tuple[Figure, Figure]]:
    """Each figure of the claim with the computed one."""
    return list(zip(claim.figures, claim.arithmetic().figures, strict=True))
