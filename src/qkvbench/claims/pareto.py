"""Dominance in quality and cache, by the study's own tables."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from qkvbench.claims.kit.arithmetic import Point, Undominated, dominators, frontier
from qkvbench.claims.kit.claim import ARTICLE, STUDY, Arithmetic, Claim
from qkvbench.claims.kit.figure import percent
from qkvbench.claims.kit.models import cache_ratio, study_300m
from qkvbench.claims.kit.reported import loss_300m, points_1_2b, points_300m
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_300M

Table = Callable[[], Mapping[str, Point]]

TIED = ("q,k=v", "q=k,v", "q=k=v")
PAIR = ("q=k,v", "q,k=v")


def _frontier(table: Table, arm: str) -> Arithmetic:
    rows = table()
    return Arithmetic(
        f"By its own table, one run each, dominated: {_dominated(rows, arm)}. "
        f"Frontier: {_equations(frontier(rows), ' · ')}."
    )


def _on_frontier(name: str, table: Table, arm: str, place: str, text: str) -> Claim:
    """A claim that an arm is on the frontier of one of the study's tables."""
    size = {points_300m: "300M", points_1_2b: "1.2B"}[table]
    return Claim(
        name=name,
        text=text,
        source=STUDY,
        place=place,
        quantity=f"dominance in validation perplexity and cache among the {size} models",
        arithmetic=partial(_frontier, table, arm),
        tests=(Undominated(table, (arm,)),),
    )


def _best_tradeoff() -> Arithmetic:
    rows = points_300m()
    return Arithmetic(
        "In the study's 300M table, perplexity against cache, one run each, dominated: "
        f"{_dominated(rows, *TIED)}. Not dominated: {_equations(frontier(rows), ' · ')}."
    )


def _redundant_key() -> Arithmetic:
    query, value = (loss_300m(arm).text for arm in PAIR)
    saved = percent(1 - cache_ratio(study_300m(), "q=k,v"), 0)
    return Arithmetic(
        f"The study reports at 300M that `q=k,v` loses {query} of perplexity and "
        f"`q,k=v` {value}, one run each; and `q=k,v` saves {saved} of the cache.",
    )


def _dominated(rows: Mapping[str, Point], *arms: str) -> str:
    """Each of the arms with the rows that dominate it."""
    return "; ".join(
        f"`{arm}` by {_equations(dominators(rows, arm), ', ') or 'none'}" for arm in arms
    )


def _equations(arms: Iterable[str], separator: str) -> str:
    return separator.join(f"`{arm}`" for arm in arms)


CLAIMS = (
    _on_frontier(
        "study-pareto-tied-300m",
        points_300m,
        "q,k=v",
        "slide 7 and poster, by table 4",
        "At 300M, sharing key and value fills a gap on the frontier of quality against cache.",
    ),
    _on_frontier(
        "study-pareto-tied-gqa",
        points_300m,
        "q,k=v/4",
        "slide 7 and poster, by table 4",
        "At 300M, sharing key and value on top of four groups is on the frontier too.",
    ),
    _on_frontier(
        "study-pareto-tied-mqa",
        points_300m,
        "q,k=v/1",
        "slide 7 and poster, by table 4",
        "At 300M, sharing key and value on top of one group is on the frontier.",
    ),
    _on_frontier(
        "study-pareto-tied-1-2b",
        points_1_2b,
        "q,k=v",
        "table 10",
        "At 1.2B, sharing key and value is on the frontier of quality against cache.",
    ),
    Claim(
        name="article-best-tradeoff",
        text="Removing projections is the best trade-off of all methods that make attention "
        "cheaper.",
        source=ARTICLE,
        place="conclusion, as an account of the study",
        quantity="dominance in perplexity and cache of the three ties in the study's 300M table",
        arithmetic=_best_tradeoff,
        tests=(Undominated(points_300m, TIED),),
    ),
    Claim(
        name="article-key-redundant",
        text="The study finds the key projection to be the redundant one: the query can be the "
        "key.",
        source=ARTICLE,
        place="text, as an account of the study",
        quantity="perplexity and cache of `q=k,v` beside those of `q,k=v`, as the study reports "
        "them",
        arithmetic=_redundant_key,
        tests=(
            Undominated(lambda: {arm: points_300m()[arm] for arm in PAIR}, ("q=k,v",)),
            Runs("q=k,v", "no worse", ("lm-reviews",), AT_300M, against="q,k=v"),
        ),
        recipe="quick",
    ),
)
