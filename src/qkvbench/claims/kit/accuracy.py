"""The test of a difference between two accuracies that are printed without intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import StoreView
from qkvbench.claims.kit.figure import signed
from qkvbench.claims.kit.reported import FIVE_SHOT, FIVE_SHOT_BENCHMARKS
from qkvbench.results.stats import LEVEL, holm


@dataclass(frozen=True)
class FiveShot:
    """An arm's mean accuracy against the baseline's, with sampling of questions as only noise.

    The answers to each question are not published, so the test is unpaired; the training seed
    would add to the noise. Holm's correction is over all arms of the table.
    """

    arm: str
    direction: Literal["lower", "higher"]

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding:
        """Supported or refuted if the difference is significant, else not distinguishable."""
        text = claim.arithmetic().text
        if adjusted_p(self.arm) >= LEVEL:
            return Finding("not distinguishable", text)
        lower = difference(self.arm) < 0
        return Finding("supported" if lower == (self.direction == "lower") else "refuted", text)


def difference(arm: str) -> float:
    """The arm's mean accuracy minus the baseline's, in points."""
    return FIVE_SHOT[arm].value - FIVE_SHOT["q,k,v"].value


def standard_error() -> float:
    """The standard error of a difference of two means, in points: binomial, unpaired.

    Both arms take the baseline's accuracy on each benchmark, since they are close.
    """
    variance = sum(
        (p / 100) * (1 - p / 100) / questions for p, questions, _ in FIVE_SHOT_BENCHMARKS.values()
    )
    return 100 * math.sqrt(2 * variance) / len(FIVE_SHOT_BENCHMARKS)


def adjusted_p(arm: str) -> float:
    """The two-sided p value of the arm's difference, adjusted for all arms of the table."""
    others = [name for name in FIVE_SHOT if name != "q,k,v"]
    error = standard_error()
    raw = {name: 2 * float(stats.norm.sf(abs(difference(name)) / error)) for name in others}
    return holm(raw)[arm]


def arithmetic(arm: str) -> Arithmetic:
    """The difference and its standard error."""
    near_chance = [
        name
        for name, (p, questions, chance) in FIVE_SHOT_BENCHMARKS.items()
        if p - chance < 1.96 * 100 * math.sqrt(chance / 100 * (1 - chance / 100) / questions)
    ]
    return Arithmetic(
        f"The average differs by {signed(difference(arm), 2)} points; questions alone give a "
        f"standard error of {standard_error():.2f} (Holm's p {adjusted_p(arm):.2g}). The baseline "
        f"is not above chance on {', '.join(near_chance)}."
    )
