"""Scores on small synthetic tasks."""

from functools import partial

from qkvbench.claims.kit.arithmetic import Consistent, Reversed
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, figure, mean
from qkvbench.claims.kit.reported import LATER_SYNTHETIC, SORT, SYNTHETIC, SYNTHETIC_TASKS
from qkvbench.claims.kit.runs import Expected, Runs
from qkvbench.claims.kit.scales import AT_RECALL, AT_SORTING, AT_SYNTHETIC

# The averages over the five tasks, as printed.
AVERAGES = {
    "q,k,v": figure("0.851"),
    "q=k,v": figure("0.854"),
    "q=k,v+2d": figure("0.870"),
    "q,k=v": figure("0.850"),
}


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
        tests=(Runs(arm, expected, ("sort",), AT_SORTING, margin=margin),),
        figures=(SORT[arm],),
        recipe="longer",
    )


def _mean(arm: str) -> Figure:
    """The mean of the arm's row over the five tasks."""
    return mean(SYNTHETIC[arm], 4)


def _averages(arm: str, other: str) -> Arithmetic:
    gap = LATER_SYNTHETIC[arm].value - LATER_SYNTHETIC[other].value
    return Arithmetic(
        f"Its own rows give these means. In the authors' later 3,240 seeded runs `{arm}` is at "
        f"{LATER_SYNTHETIC[arm].text} and `{other}` at {LATER_SYNTHETIC[other].text}, "
        f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} it.",
        (_mean(arm), _mean(other)),
    )


def _better(name: str, arm: str, other: str, text: str) -> Claim:
    """A claim that an arm's average over the five tasks is above another's."""
    return Claim(
        name=name,
        text=text,
        place="table of synthetic tasks",
        quantity=f"mean accuracy of `{arm}` on five synthetic tasks, beside that of `{other}`",
        arithmetic=partial(_averages, arm, other),
        tests=(
            Consistent(),
            Reversed(
                (AVERAGES[arm], AVERAGES[other]), (LATER_SYNTHETIC[arm], LATER_SYNTHETIC[other])
            ),
            Runs(other, "worse", SYNTHETIC_TASKS, AT_SYNTHETIC, against=arm),
        ),
        figures=(AVERAGES[arm], AVERAGES[other]),
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
    _better(
        "study-synthetic-query-key",
        "q=k,v",
        "q,k,v",
        "On five synthetic tasks using the query as key is better than three projections.",
    ),
    _better(
        "study-synthetic-encoding",
        "q=k,v+2d",
        "q=k,v",
        "On five synthetic tasks the two-dimensional encoding helps a model that uses the query as "
        "key.",
    ),
    Claim(
        name="study-synthetic-average",
        text="On five synthetic tasks sharing key and value scores 0.850, the baseline 0.851: it "
        "does no harm.",
        place="table of synthetic tasks",
        quantity="mean accuracy of `q,k=v` on five synthetic tasks, beside that of `q,k,v`",
        arithmetic=partial(_averages, "q,k=v", "q,k,v"),
        tests=(
            Consistent(),
            # No harm means at most the loss on sorting in the study's own table.
            Runs(
                "q,k=v",
                "no worse",
                SYNTHETIC_TASKS,
                AT_SYNTHETIC,
                margin=_sort_loss("q,k=v"),
            ),
        ),
        figures=(AVERAGES["q,k=v"], AVERAGES["q,k,v"]),
    ),
    Claim(
        name="study-recall-by-heads",
        text="Of four heads, a model whose values are its keys solves associative recall less "
        "often, or later, than one with separate values.",
        place="authors' later runs of Keyless, a related variant, commit ff3ef42",
        quantity="seeds of `q,k=v` that solve recall with four heads, and when, beside `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds it. The later runs are of another variant, with three seeds each, of "
            "which none solves the task; with one head all do."
        ),
        tests=(Runs("q,k=v", "worse", ("recall@4x16",), AT_RECALL),),
        recipe="heads",
    ),
)
