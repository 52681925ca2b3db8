"""Scores on small synthetic tasks."""

from functools import partial

from qkvbench.claims.kit.arithmetic import Consistent, NotTestable
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import figure, mean
from qkvbench.claims.kit.reported import SORT
from qkvbench.claims.kit.runs import Expected, Runs
from qkvbench.claims.kit.scales import SMALL, SYNTHETIC

# Accuracies of `q,k=v` on reverse, sort, subtract, swap and copy.
TIED = ("0.701", "0.958", "1.000", "0.590", "1.000")

# Averages of the authors' later runs.
LATER = {"q,k=v": figure("0.751"), "q,k,v": figure("0.758")}


def _sort_loss(arm: str) -> float:
    """The accuracy that the arm loses on sorting, by the study's table."""
    return SORT["q,k,v"].value - SORT[arm].value


def _sorting(arm: str) -> Arithmetic:
    return Arithmetic(
        f"Its two accuracies are {_sort_loss(arm):.3f} apart, over all its lengths and sizes. "
        "Nothing bounds a loss of quality."
    )


def _sort(name: str, arm: str, expected: Expected, text: str) -> Claim:
    """A claim on sorting; "no worse" allows the loss that the study reports."""
    margin = _sort_loss(arm) if expected == "no worse" else None
    return Claim(
        name=name,
        text=text,
        place="table of synthetic tasks, SORT",
        quantity=f"accuracy of `{arm}` on sorting digits, beside that of `q,k,v`",
        arithmetic=partial(_sorting, arm),
        tests=(Runs(arm, expected, ("sort",), SYNTHETIC, margin=margin),),
        figures=(SORT[arm],),
        recipe="longer",
    )


def _average() -> Arithmetic:
    gap = LATER["q,k,v"].value - LATER["q,k=v"].value
    return Arithmetic(
        "Its own row gives that mean. In the authors' later and larger set of seeded runs the "
        f"two are {gap:.3f} apart, at lower values.",
        (mean([figure(each) for each in TIED], 4),),
    )


CLAIMS = (
    _sort(
        "study-sort-query-key",
        "q=k,v",
        "no worse",
        "On sorting, using the query as key loses 0.004 of accuracy and not more.",
    ),
    _sort(
        "study-sort-tied",
        "q,k=v",
        "no worse",
        "On sorting, sharing key and value loses 0.013 of accuracy and not more.",
    ),
    _sort(
        "study-sort-single",
        "q=k=v",
        "worse",
        "On sorting, one projection for all is worse than three.",
    ),
    Claim(
        name="study-tied-never-harms",
        text="Sharing key and value does no harm on small tasks, whichever they are.",
        place="conclusion from its synthetic tasks, read as a rule",
        quantity="scores of `q,k=v` beside those of `q,k,v`; on recall, seeds that solve it",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds a loss of quality. None of its five synthetic tasks asks for "
            "associative recall, on which the authors' later runs of a related variant fail."
        ),
        # No harm means at most the loss on sorting in the study's own table.
        tests=(Runs("q,k=v", "no worse", ("sort", "recall"), SMALL, margin=_sort_loss("q,k=v")),),
        recipe="quick",
    ),
    Claim(
        name="study-recall-by-heads",
        text="With its value tied to its key a model of four heads fails at associative recall.",
        place="authors' later runs of Keyless, commit ff3ef42",
        quantity="seeds of `q,k=v` that solve recall with four heads",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds it. The later runs are of another variant, with three seeds each, and "
            "with one head they all solve it."
        ),
        tests=(Runs("q,k=v", "worse", ("recall@4x16",), SMALL),),
        recipe="heads",
    ),
    Claim(
        name="study-synthetic-average",
        text="On five synthetic tasks sharing key and value scores 0.850, the baseline 0.851.",
        place="table of synthetic tasks",
        quantity="mean accuracy of `q,k=v` on five synthetic tasks",
        arithmetic=_average,
        tests=(
            Consistent(),
            NotTestable(
                "several seeds of both arms on reverse, sort, subtract, swap and copy, with models "
                "of the study's sizes"
            ),
        ),
        figures=(figure("0.850"),),
    ),
)
