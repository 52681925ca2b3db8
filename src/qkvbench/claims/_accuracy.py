"""The test of a difference between two accuracies that are given without any interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from qkvbench.claims._claim import Arithmetic, Claim, Finding
from qkvbench.claims._evidence import CLEAR, Shown, together
from qkvbench.claims._figure import signed
from qkvbench.claims._reported import FIVE_SHOT, FIVE_SHOT_PARTS


@dataclass(frozen=True)
class FiveShot:
    """An arm's average against the baseline's, if only the choice of questions made a difference.

    The arms' answers to each question are not known, so the test is unpaired; the training seed
    would add to the noise. Holm over all arms of the table.
    """

    arm: str
    direction: Literal["lower", "higher"]

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding:
        """Supported or refuted where the difference is clear, else not distinguishable."""
        says = claim.arithmetic().says
        if adjusted(self.arm) >= CLEAR:
            return Finding("not distinguishable", says)
        lower = difference(self.arm) < 0
        return Finding("supported" if lower == (self.direction == "lower") else "refuted", says)


def difference(arm: str) -> float:
    """The arm's average minus the baseline's, in points."""
    return FIVE_SHOT[arm].value - FIVE_SHOT["q,k,v"].value


def error() -> float:
    """The standard error of a difference of two averages, in points: binomial, unpaired.

    The baseline's accuracy on each benchmark stands for both arms, since they are close.
    """
    variance = sum(
        (p / 100) * (1 - p / 100) / questions for p, questions, _ in FIVE_SHOT_PARTS.values()
    )
    return 100 * math.sqrt(2 * variance) / len(FIVE_SHOT_PARTS)


def adjusted(arm: str) -> float:
    """The two-sided p value of the arm's difference, adjusted for all arms of the table."""
    others = [name for name in FIVE_SHOT if name != "q,k,v"]
    raw = {name: 2 * float(stats.norm.sf(abs(difference(name)) / error())) for name in others}
    return together(raw)[arm]


def arithmetic(arm: str) -> Arithmetic:
    """The difference beside its standard error."""
    near = [
        name
        for name, (p, questions, chance) in FIVE_SHOT_PARTS.items()
        if p - chance < 1.96 * 100 * math.sqrt(chance / 100 * (1 - chance / 100) / questions)
    ]
    return Arithmetic(
        says=f"The average differs by {signed(difference(arm), 2)} points; questions alone give a "
        f"standard error of {error():.2f} (Holm's p {adjusted(arm):.2g}). The baseline is not "
        f"above chance on {', '.join(near)}."
    )
