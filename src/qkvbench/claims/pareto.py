"""Dominance in quality and cache, by the study's own tables."""

from collections.abc import Iterable, Mapping
from functools import partial

from qkvbench.claims.kit.arithmetic import (
    NotTestable,
    Point,
    Undominated,
    dominators,
    frontier,
)
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import percent
from qkvbench.claims.kit.models import cache_ratio, study_300m
from qkvbench.claims.kit.reported import loss, points
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_300M

TIED = ("q,k=v", "q=k,v", "q=k=v")
PAIR = ("q=k,v", "q,k=v")


def _frontier(arm: str, size: str) -> Arithmetic:
    rows = points(size)
    return Arithmetic(
        f"Dominated: {_dominated(rows, arm)}. One run each, by its own table. "
        f"Frontier: {_equations(frontier(rows), ' · ')}."
    )


def _on_frontier(name: str, arm: str, claimed: str, *, size: str = "300M") -> Claim:
    """A claim that an arm is on the frontier of the table of this size."""
    return Claim(
        name=name,
        text=f"At {size}, {claimed}.",
        place={"300M": "slide 7 and poster, by table 4", "1.2B": "table 10"}[size],
        quantity=f"dominance in validation perplexity and cache among the {size} models",
        arithmetic=partial(_frontier, arm, size),
        tests=(Undominated(partial(points, size), (arm,)),),
    )


def _best_tradeoff() -> Arithmetic:
    rows = points("300M")
    return Arithmetic(
        "Its own table gives FlashAttention a gain at no loss, beside a loss for removing "
        "projections; the gains have different units. Of the methods in the study's own 300M "
        f"table, perplexity against cache, one run each, dominated: {_dominated(rows, *TIED)}."
    )


def _redundant_key() -> Arithmetic:
    query, value = (loss(arm).text for arm in PAIR)
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
        "q,k=v",
        "sharing key and value fills a gap on the frontier of quality against cache",
    ),
    _on_frontier(
        "study-pareto-tied-gqa",
        "q,k=v/4",
        "sharing key and value on top of four groups is on the frontier too",
    ),
    _on_frontier(
        "study-pareto-tied-mqa",
        "q,k=v/1",
        "sharing key and value on top of one group is on the frontier",
    ),
    _on_frontier(
        "study-pareto-tied-1-2b",
        "q,k=v",
        "sharing key and value is on the frontier of quality against cache",
        size="1.2B",
    ),
    Claim(
        name="article-best-tradeoff",
        text="Beside FlashAttention, sparse and linear attention, removing projections is the best "
        "trade-off.",
        place="conclusion from the table of approaches",
        quantity="quality against cost of the four approaches, on the same hardware",
        arithmetic=_best_tradeoff,
        tests=(
            NotTestable(
                "matched runs of sparse and linear attention beside the ties, with their times on "
                "named hardware"
            ),
        ),
    ),
    Claim(
        name="article-key-redundant",
        text="The study finds the key projection to be the redundant one: the query can be the "
        "key.",
        place="text, as an account of the study",
        quantity="perplexity and cache of `q=k,v` beside those of `q,k=v`, as the study reports "
        "them",
        arithmetic=_redundant_key,
        tests=(
            Undominated(lambda: {arm: points("300M")[arm] for arm in PAIR}, ("q=k,v",)),
            Runs("q=k,v", "no worse", ("lm-reviews",), AT_300M, against="q,k=v"),
        ),
        recipe="quick",
    ),
)
