"""Tests that need no runs: exact values, bounds, and the consistency of a source's tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qkvbench.claims.kit.claim import Claim, Finding, Verdict
from qkvbench.claims.kit.evidence import StoreView
from qkvbench.claims.kit.figure import ROUNDING, Figure, agree, rounds_to

_REPORTED = "the figures reported give"


@dataclass(frozen=True)
class Computed:
    """The quantity follows from shapes alone: the figure is right, or it is impossible."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
        """Supported if every figure is the computed one at its own digits."""
        return _comparison(claim, otherwise="impossible", relation="computed")


@dataclass(frozen=True)
class OwnFigures:
    """The quantity follows from other figures of the source, within their rounding."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
        """Supported or refuted; not distinguishable if the figures agree only within rounding."""
        pairs = _pairs(claim)
        if all(agree(*pair) for pair in pairs) and not all(rounds_to(*pair) for pair in pairs):
            return Finding("not distinguishable", _reason(claim, _REPORTED))
        return _comparison(claim, otherwise="refuted", relation=_REPORTED)


@dataclass(frozen=True)
class Consistent:
    """Refuted if the source's own figures exclude the claimed one; otherwise undecided."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding | None:
        """Refuted, or None."""
        finding = _comparison(claim, otherwise="refuted", relation=_REPORTED)
        return None if finding.verdict == "supported" else finding


@dataclass(frozen=True)
class AtMost:
    """Impossible if a figure exceeds its upper bound; otherwise undecided."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding | None:
        """Impossible, or None."""
        if any(printed.low > bound.high for printed, bound in _pairs(claim)):
            return Finding("impossible", _reason(claim, "at most"))
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

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
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

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
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
    return Finding("supported" if right else otherwise, _reason(claim, relation))


def _reason(claim: Claim, relation: str) -> str:
    """The first pair of figures that differs, then the conclusion of arithmetic."""
    pairs = _pairs(claim)
    printed, computed = next((pair for pair in pairs if not rounds_to(*pair)), pairs[0])
    return f"Stated {printed.text}; {relation} {computed.text}. {claim.arithmetic().text}"


def _pairs(claim: Claim) -> list[tuple[Figure, Figure]]:
    """Each figure of the claim with the computed one."""
    return list(zip(claim.figures, claim.arithmetic().figures, strict=True))
