"""Scores on benchmarks of language and translation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from scipy import stats

from qkvbench.claims.kit.arithmetic import NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import StoreView
from qkvbench.claims.kit.figure import figure, quotient, reduction, signed
from qkvbench.claims.kit.reported import FIVE_SHOT, FIVE_SHOT_BENCHMARKS
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_125M
from qkvbench.results.critical import LEVEL, holm

# The baseline's scores in the article.
GLUE, BLEU = figure("85.2"), figure("28.4")


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
        if _adjusted_p(self.arm) >= LEVEL:
            return Finding("not distinguishable", text)
        lower = _difference(self.arm) < 0
        return Finding("supported" if lower == (self.direction == "lower") else "refuted", text)


def _difference(arm: str) -> float:
    """The arm's mean accuracy minus the baseline's, in points."""
    return FIVE_SHOT[arm].value - FIVE_SHOT["q,k,v"].value


def _standard_error() -> float:
    """The standard error of a difference of two means, in points: binomial, unpaired.

    Both arms take the baseline's accuracy on each benchmark, since they are close.
    """
    variance = sum(
        (p / 100) * (1 - p / 100) / questions for p, questions, _ in FIVE_SHOT_BENCHMARKS.values()
    )
    return 100 * math.sqrt(2 * variance) / len(FIVE_SHOT_BENCHMARKS)


def _adjusted_p(arm: str) -> float:
    """The two-sided p value of the arm's difference, adjusted for all arms of the table."""
    others = [name for name in FIVE_SHOT if name != "q,k,v"]
    error = _standard_error()
    raw = {name: 2 * float(stats.norm.sf(abs(_difference(name)) / error)) for name in others}
    return holm(raw)[arm]


def _arithmetic(arm: str) -> Arithmetic:
    """The difference and its standard error."""
    near_chance = [
        name
        for name, (p, questions, chance) in FIVE_SHOT_BENCHMARKS.items()
        if p - chance < 1.96 * 100 * math.sqrt(chance / 100 * (1 - chance / 100) / questions)
    ]
    return Arithmetic(
        f"The average differs by {signed(_difference(arm), 2)} points; questions alone give a "
        f"standard error of {_standard_error():.2f} (Holm's p {_adjusted_p(arm):.2g}). The "
        f"baseline is not above chance on {', '.join(near_chance)}."
    )


def _five_shot(name: str, arm: str, direction: Literal["lower", "higher"], result: str) -> Claim:
    """A claim of the table of five-shot accuracies at 1.2B."""
    return Claim(
        name=name,
        text=f"At 1.2B, {result} five-shot accuracy.",
        place="table 11 and slide 8, seen in one secondary source",
        quantity=f"mean five-shot accuracy of `{arm}` on five benchmarks, beside that of `q,k,v`",
        arithmetic=partial(_arithmetic, arm),
        tests=(FiveShot(arm, direction),),
        figures=(FIVE_SHOT[arm],),
    )


def _reductions(glue: str, bleu: str) -> Arithmetic:
    return Arithmetic(
        f"Its table loses {reduction(figure(glue), GLUE).text} of GLUE and "
        f"{reduction(figure(bleu), BLEU).text} of BLEU. Neither an interval nor "
        "a number of seeds is given, and nothing bounds a loss of quality."
    )


CLAIMS = (
    _five_shot(
        "study-downstream-tied", "q,k=v", "lower", "sharing key and value loses 0.41 points of"
    ),
    _five_shot("study-downstream-gqa", "q,k,v/8", "lower", "eight groups lose half a point of"),
    _five_shot(
        "study-downstream-tied-gqa",
        "q,k=v/8",
        "higher",
        "sharing on top of eight groups beats the baseline's",
    ),
    _five_shot(
        "study-downstream-tied-mqa",
        "q,k=v/1",
        "lower",
        "sharing on top of one group loses two points of",
    ),
    Claim(
        name="article-value-only-quality",
        text="Keeping only the value projection loses about a tenth of the quality.",
        place="results table, Value-only",
        quantity="GLUE and BLEU that `q=k=x,v` loses, percent of those of `q,k,v`",
        arithmetic=lambda: _reductions(glue="77.5", bleu="24.1"),
        tests=(Runs("q=k=x,v", "worse", ("lm-reviews",), AT_125M),),
        recipe="quick",
    ),
    Claim(
        name="article-no-projections-quality",
        text="Without any projection a quarter to a third of the quality is lost.",
        place="results table, No projections",
        quantity="GLUE and BLEU that `q=k=v=x` loses, percent of those of `q,k,v`",
        arithmetic=lambda: _reductions(glue="62.3", bleu="18.9"),
        tests=(Runs("q=k=v=x", "worse", ("lm-reviews",), AT_125M),),
        recipe="quick",
    ),
    Claim(
        name="article-glue-shared",
        text="One shared projection loses less than 1% of the GLUE score.",
        place="results table, Shared QKV",
        quantity="GLUE score that `q=k=v` loses, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            f"Its table loses {reduction(figure('84.7'), GLUE).text}. Neither an interval nor a "
            "number of seeds is given, and nothing bounds a loss of quality.",
        ),
        tests=(NotTestable(AT_125M.requires),),
        figures=(figure("1", "%"),),
    ),
    Claim(
        name="article-wmt14-share",
        text="One shared projection keeps 98.7% of the baseline's BLEU on WMT14.",
        place="text, against the results table",
        quantity="BLEU of `q=k=v`, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "That is the share of the two scores as printed; what they were before their own "
            "rounding could give anything in the range.",
            (quotient(figure("28.0"), BLEU, "%", times=100),),
        ),
        tests=(OwnFigures(),),
        figures=(figure("98.7", "%"),),
    ),
)
