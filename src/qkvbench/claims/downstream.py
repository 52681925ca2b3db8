"""Scores on benchmarks of language and translation."""

import math
from dataclasses import dataclass
from functools import partial

from scipy import stats

from qkvbench.claims.kit.arithmetic import Consistent, NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import Pool
from qkvbench.claims.kit.figure import Figure, exact_figure, figure, quotient, reduction, signed
from qkvbench.claims.kit.reported import (
    ARTICLE,
    CHANGED,
    FIVE_SHOT,
    FIVE_SHOT_BENCHMARKS,
)
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_125M
from qkvbench.results.critical import LEVEL, holm


@dataclass(frozen=True)
class FiveShot:
    """Undecided if sampling of questions alone can explain an arm's distance from the baseline.

    The answers to each question are not published, so the test is unpaired. A larger distance
    decides nothing either: each arm was trained once, and the noise of training adds to it. Holm's
    correction is over all arms of the table.
    """

    arm: str

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Not distinguishable, or None."""
        if _adjusted_p(self.arm) < LEVEL:
            return None
        return Finding("not distinguishable", claim.arithmetic().text)


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
        f"{signed(_difference(arm), 2)} points, standard error of the questions alone "
        f"{_standard_error():.2f} (Holm's p {_adjusted_p(arm):.2g}). One run "
        "each; the released code scores some arms after 7,000 steps and others after 8,000. The "
        f"baseline is not above chance on {', '.join(near_chance)}."
    )


def _five_shot(name: str, arm: str, result: str) -> Claim:
    """A claim of the table of five-shot accuracies at 1.2B."""
    return Claim(
        name=name,
        text=f"At 1.2B, {result} five-shot accuracy.",
        place="table 11 and slide 8, seen in one secondary source",
        quantity=f"mean five-shot accuracy of `{arm}` on five benchmarks, beside that of `q,k,v`",
        arithmetic=partial(_arithmetic, arm),
        tests=(
            FiveShot(arm),
            NotTestable("several runs of both arms, scored after the same number of steps"),
        ),
        figures=(FIVE_SHOT[arm],),
    )


def _lost(arm: str) -> tuple[Figure, Figure]:
    """GLUE and BLEU that the arm loses in the article's table, percent of the baseline's."""
    row, base = ARTICLE[arm], ARTICLE["q,k,v"]
    return reduction(row.glue, base.glue), reduction(row.bleu, base.bleu)


def _reductions(arm: str) -> Arithmetic:
    glue, bleu = _lost(arm)
    return Arithmetic(
        f"Its table loses {glue.text} of GLUE and {bleu.text} of BLEU. Neither an interval nor "
        "a number of seeds is given, and nothing bounds a loss of quality.",
    )


def _matching() -> Arithmetic:
    rows = [ARTICLE[arm] for arm in CHANGED]
    base = ARTICLE["q,k,v"]
    above = sum(row.glue.high >= base.glue.low or row.bleu.high >= base.bleu.low for row in rows)
    near = sum(max(lost.value for lost in _lost(arm)) < 2 for arm in CHANGED)
    return Arithmetic(
        f"In its own table every simplified configuration is below the canonical one in both "
        f"scores; {near} of {len(rows)} lose less than 2% of both.",
        (exact_figure(above, f"{above} of {len(rows)}"),),
    )


CLAIMS = (
    _five_shot("study-downstream-tied", "q,k=v", "sharing key and value loses 0.41 points of"),
    _five_shot("study-downstream-gqa", "q,k,v/8", "eight groups lose half a point of"),
    _five_shot(
        "study-downstream-tied-gqa",
        "q,k=v/8",
        "sharing on top of eight groups beats the baseline's",
    ),
    _five_shot(
        "study-downstream-tied-mqa",
        "q,k=v/1",
        "sharing on top of one group loses two points of",
    ),
    Claim(
        name="article-match-or-exceed",
        text="Several simplified configurations match or exceed the canonical one.",
        place="first paragraph, against the results table",
        quantity="simplified configurations that reach the canonical GLUE or BLEU in its table",
        arithmetic=_matching,
        tests=(OwnFigures(),),
        figures=(Figure(2, 2, len(CHANGED), "several, so 2 or more"),),
    ),
    Claim(
        name="article-no-key-glue",
        text="Without a key projection a model loses 0.3% of the GLUE score.",
        place="text, and results table, No Key",
        quantity="GLUE score that `q=k,v` loses, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            f"Its table gives {_lost('q=k,v')[0].text}, and {_lost('q=k,v')[1].text} of BLEU. "
            "Neither an interval nor a number of seeds is given. Nothing bounds a loss of quality.",
            (_lost("q=k,v")[0],),
        ),
        tests=(Consistent(), Runs("q=k,v", "worse", ("lm-reviews",), AT_125M)),
        figures=(figure("0.3", "%"),),
        recipe="quick",
    ),
    Claim(
        name="article-value-only-quality",
        text="Keeping only the value projection loses about a tenth of the quality.",
        place="results table, Value-only",
        quantity="GLUE and BLEU that `q=k=x,v` loses, percent of those of `q,k,v`",
        arithmetic=partial(_reductions, "q=k=x,v"),
        tests=(Runs("q=k=x,v", "worse", ("lm-reviews",), AT_125M),),
        recipe="quick",
    ),
    Claim(
        name="article-no-projections-quality",
        text="Without any projection a quarter to a third of the quality is lost.",
        place="results table, No projections",
        quantity="GLUE and BLEU that `q=k=v=x` loses, percent of those of `q,k,v`",
        arithmetic=partial(_reductions, "q=k=v=x"),
        tests=(Runs("q=k=v=x", "worse", ("lm-reviews",), AT_125M),),
        recipe="quick",
    ),
    Claim(
        name="article-glue-shared",
        text="One shared projection loses less than 1% of the GLUE score.",
        place="results table, Shared QKV",
        quantity="GLUE score that `q=k=v` loses, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            f"Its table loses {_lost('q=k=v')[0].text}. Neither an interval nor a number of seeds "
            "is given, and nothing bounds a loss of quality.",
        ),
        tests=(Runs("q=k=v", "no worse", ("lm-reviews",), AT_125M),),
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
            (quotient(ARTICLE["q=k=v"].bleu, ARTICLE["q,k,v"].bleu, "%", times=100),),
        ),
        tests=(OwnFigures(),),
        figures=(figure("98.7", "%"),),
    ),
)
