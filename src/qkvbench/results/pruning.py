"""Learned plans beside their rivals: losses before and after healing, and how far plans agree."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from qkvbench.cost.budget import Choice
from qkvbench.model import IN_TURN
from qkvbench.results.store import StoreError
from qkvbench.results.welch import Unit, mean_bounds

# The file of everything that was found.
RESULT = "prune.json"

# Names of arms: the trained weights as they are, and the plan of the gates.
CONTINUED, LEARNED = "all layers as they are", "learned"
ALONE, SCRATCH = "learned plan, weights of before", "learned plan, from scratch"
PROGRAM, PAIRS = "integer program", "integer program with pairs"
RANDOM = "random"


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


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True)


class Arm(_Read):
    """One way to choose a plan: its outcomes, of each seed and draw."""

    seeds: tuple[tuple[PlanLoss, ...], ...]


class Snapshot(_Read):
    """The probability of each option of each layer at a step of the gates."""

    step: int
    probabilities: tuple[tuple[float, ...], ...]


class Agreement(_Read):
    """The share of layers in which learned plans agree with each other, and with the program's."""

    of_seeds: float | None
    with_integer_program: float


class Tried(_Read):
    """A bound of the cost that a search for a loss has tried."""

    share: float
    cost: float
    growth: float


class PruneResult(_Read):
    """The file that `qkvbench prune` wrote; a plan is the variants of its layers in turn."""

    version: Literal[1]
    task: str
    model: str
    layers: int
    options: tuple[str, ...]
    target: str
    wanted: str | None = None
    tried: tuple[Tried, ...] = ()
    distilled: bool = False
    share: float
    seeds: tuple[int, ...]
    learned: tuple[str, ...]
    integer_program: tuple[str, ...]
    best_rival: str
    agreement: Agreement
    arms: dict[str, Arm]
    history: tuple[tuple[Snapshot, ...], ...]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Refuse what has not one plan and history for each seed, over the options and layers."""
        plans = [each.split(IN_TURN) for each in (*self.learned, *self.integer_program)]
        per_seed = (self.learned, self.integer_program, self.history, *self._seeds_of_arms())
        if (
            any(len(each) != len(self.seeds) for each in per_seed)
            or not all(self.history)
            or CONTINUED not in self.arms
            or any(len(plan) != self.layers or not {*plan} <= {*self.options} for plan in plans)
            or any(
                [len(row) for row in each.probabilities] != [len(self.options)] * self.layers
                for seed in self.history
                for each in seed
            )
        ):
            raise ValueError("plans, seeds, layers and options do not agree")
        return self

    def _seeds_of_arms(self) -> list[tuple[tuple[PlanLoss, ...], ...]]:
        return [arm.seeds for arm in self.arms.values()]

    def above(self, arm: str) -> Estimate:
        """The healed loss of an arm above that of all layers as they are, over seeds."""
        return difference(self.arms[arm].seeds, self.arms[CONTINUED].seeds)

    def cost(self, arm: str) -> float:
        """The mean cost of an arm's plans, as a share."""
        return statistics.fmean(each.share for seed in self.arms[arm].seeds for each in seed)


def read_result(folder: Path) -> PruneResult:
    """The result in a folder of `qkvbench prune`; StoreError if it cannot be read."""
    path = folder / RESULT
    try:
        return PruneResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is no result of prune: {where}: {first['msg']}.") from None
