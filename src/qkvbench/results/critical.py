"""Exact bounds on proportions, tests on them, and Holm's adjustment."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

from scipy import special

LEVEL = 0.05

Key = TypeVar("Key", bound=Hashable)


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down adjustment of all p values of a family."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, p[name] * (len(p) - rank)))
        adjusted[name] = largest
    return adjusted


def clopper_pearson(solved: int, seeds: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Exact bounds on a proportion, from `solved` out of `seeds`."""
    # Quantiles of beta distributions.
    low = special.betaincinv(solved, seeds - solved + 1, level / 2) if solved > 0 else 0.0
    high = special.betaincinv(solved + 1, seeds - solved, 1 - level / 2) if solved < seeds else 1.0
    return float(low), float(high)


def not_lower_p(first: int, second: int, *, seeds: int, margin: float) -> float:
    """One-sided p that the first proportion of solved seeds is below the second by the margin.

    Non-inferiority is shown at a level if the exact one-sided bounds of both proportions, each at
    half of it, are less than the margin apart; p is the smallest such level. It is conservative.
    """

    def largest_gap(level: float) -> float:
        low = clopper_pearson(first, seeds, level=level)[0]
        return clopper_pearson(second, seeds, level=level)[1] - low

    if largest_gap(1.0) >= margin:
        return 1.0
    small, large = 0.0, 1.0
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if largest_gap(middle) < margin else (middle, large)
    return large
