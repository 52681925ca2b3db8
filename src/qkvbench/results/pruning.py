"""Learned plans beside their rivals: losses before and after healing, and how far plans agree."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from qkvbench.cost.budget import Choice
from qkvbench.results.welch import Unit, mean_bounds


@dataclass(frozen=True)
class PlanLoss:
    """One plan of one seed: its layers, its cost as a share, and its test loss in nats.

    ``before`` is the loss before healing; None for what begins untrained.
    """

    layers: tuple[str, ...]
    share: float
    before: float | None
    after: float


# An arm's outcome of each seed; of several draws, all of them.
PlanLosses = Sequence[Sequence[PlanLoss]]


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, and its 95% interval; None for one seed."""

    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value for each seed."""
    low, high = mean_bounds(values, Unit(logit=False)) or (None, None)
    return Estimate(statistics.fmean(values), low, high)


def after(outcomes: PlanLosses) -> list[float]:
    """The healed loss of each seed; of several draws their mean."""
    return [statistics.fmean(each.after for each in seed) for seed in outcomes]


def before(outcomes: PlanLosses) -> list[float] | None:
    """The loss of each seed before healing; None for what begins untrained."""
    found = [[each.before for each in seed if each.before is not None] for seed in outcomes]
    return [statistics.fmean(each) for each in found] if all(found) else None


def difference(one: PlanLosses, other: PlanLosses) -> Estimate:
    """The healed loss of one arm minus another's, over the seeds that both have."""
    return estimate([a - b for a, b in zip(after(one), after(other), strict=True)])


def best(arms: Mapping[str, PlanLosses]) -> str:
    """The arm with the least mean loss: chosen after the fact, so its own mean flatters it."""
    return min(arms, key=lambda name: statistics.fmean(after(arms[name])))


def agreement(plans: Sequence[Choice]) -> float | None:
    """The share of layers in which two of these plans agree, over all pairs; None for one plan."""
    shares = [_same(one, other) for one, other in combinations(plans, 2)]
    return statistics.fmean(shares) if shares else None


def agreement_with(plans: Sequence[Choice], others: Sequence[Choice]) -> float:
    """The share of layers in which each plan agrees with another of the same seed."""
    return statistics.fmean(map(_same, plans, others))


def _same(one: Choice, other: Choice) -> float:
    return statistics.fmean(a == b for a, b in zip(one, other, strict=True))
