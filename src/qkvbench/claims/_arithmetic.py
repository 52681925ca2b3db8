"""Tests that need no run: what a figure is, what it can be at most, what a table says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qkvbench.claims._claim import Claim, Finding, Verdict
from qkvbench.claims._evidence import Shown
from qkvbench.claims._figure import Figure, agree, rounds_to

_REPORTED = "the figures reported give"
# Half a digit up from 5.1 and half a digit down from 5.2 are one number, but not to a computer.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Computed:
    """The quantity follows from shapes alone: the figure is right, or it is impossible."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """Supported where every stated figure is the computed one at its own digits."""
        return _compared(claim, otherwise="impossible", relation="computed")


@dataclass(frozen=True)
class OwnFigures:
    """The quantity follows from other figures of the source, as far as their digits say."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """Supported, refuted, or not distinguishable where only the rounding could save it."""
        found = claim.arithmetic()
        pairs = list(zip(claim.stated, found.figures, strict=True))
        if all(agree(a, b) for a, b in pairs) and not all(rounds_to(a, b) for a, b in pairs):
            return Finding("not distinguishable", _said(claim, _REPORTED))
        return _compared(claim, otherwise="refuted", relation=_REPORTED)


@dataclass(frozen=True)
class Consistent:
    """Refuted where the source's own figures exclude the stated one; else nothing is decided."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """Refuted or nothing."""
        found = _compared(claim, otherwise="refuted", relation=_REPORTED)
        return None if found.verdict == "supported" else found


@dataclass(frozen=True)
class AtMost:
    """Impossible where a stated figure lies above its bound; else nothing is decided."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """Impossible or nothing."""
        found = claim.arithmetic()
        pairs = zip(claim.stated, found.figures, strict=True)
        if any(stated.low > bound.high for stated, bound in pairs):
            return Finding("impossible", _said(claim, "at most"))
        return None


@dataclass(frozen=True)
class Point:
    """A variant in a table of a source: what it loses (less is better) and what it keeps."""

    loss: Figure
    kept: float


@dataclass(frozen=True)
class Undominated:
    """No other row of the table is at least as good in both columns and better in one."""

    table: Callable[[], Mapping[str, Point]]
    arms: tuple[str, ...]

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """Refuted where the printed digits let a row dominate one of the arms."""
        table = self.table()
        says = claim.arithmetic().says
        if any(dominators(table, arm) for arm in self.arms):
            return Finding("refuted", says)
        if any(dominators(table, arm, surely=False) for arm in self.arms):
            return Finding("not distinguishable", says)
        return Finding("supported", says)


@dataclass(frozen=True)
class Elsewhere:
    """What this bench cannot test yet, and what a test would take."""

    takes: str

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """Not testable here, with what arithmetic says about it."""
        return Finding("not testable here", claim.arithmetic().says, takes=self.takes)


def dominators(table: Mapping[str, Point], arm: str, *, surely: bool = True) -> tuple[str, ...]:
    """The rows that beat `arm` in one column and do not lose in the other.

    `surely` asks it of every number that the printed digits leave open, otherwise of one.
    """
    own = table[arm]

    def beats(other: Point) -> bool:
        less = (other.loss.high - own.loss.low) if surely else (other.loss.low - own.loss.high)
        better = less < -_ROUNDING or other.kept < own.kept
        return less <= _ROUNDING and other.kept <= own.kept and better

    return tuple(name for name, other in table.items() if name != arm and beats(other))


def frontier(table: Mapping[str, Point]) -> tuple[str, ...]:
    """The rows that no other row dominates."""
    return tuple(arm for arm in table if not dominators(table, arm))


def _compared(claim: Claim, *, otherwise: Verdict, relation: str) -> Finding:
    found = claim.arithmetic()
    pairs = zip(claim.stated, found.figures, strict=True)
    right = all(agree(stated, figure) for stated, figure in pairs)
    return Finding("supported" if right else otherwise, _said(claim, relation))


def _said(claim: Claim, relation: str) -> str:
    """Stated beside found, for the first figure that differs, then what arithmetic says."""
    found = claim.arithmetic()
    pairs = list(zip(claim.stated, found.figures, strict=True))
    stated, figure = next((pair for pair in pairs if not rounds_to(*pair)), pairs[0])
    return f"Stated {stated.text}; {relation} {figure.text}. {found.says}"
