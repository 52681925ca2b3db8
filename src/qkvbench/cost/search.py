"""The least cost whose plans lose no more than a target allows: costs are bisected."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from qkvbench.cost.budget import Budget
from qkvbench.model import LossTarget


class UnreachableLossError(Exception):
    """Even the smallest change costs more loss than the target allows; the message has the loss."""


@dataclass(frozen=True)
class Probe:
    """Learned plans that cost at most ``share``, and by how much their loss grows.

    ``cost`` is the dearest plan's share; ``growth`` the loss above that of all layers as they are,
    as a share of it: means over seeds, on what no plan is judged by.
    """

    share: float
    cost: float
    growth: float


def cheapest_within(
    budget: Budget, target: LossTarget, probe: Callable[[float], Probe]
) -> tuple[Probe, list[Probe]]:
    """The probe of the least cost that is within the loss, and all that was tried.

    ``probe`` learns plans that cost at most a share. It is exact if a higher cost never has more
    loss. UnreachableLossError if the smallest change is too much, which is tried first.
    """
    check_cheaper(budget, target)
    levels = budget.levels()
    probes: list[Probe] = []
    failing, within, next_level = -1, len(levels), len(levels) - 1
    while within - failing > 1:
        probes.append(probe(_as_share(levels[next_level])))
        if probes[-1].growth <= target.growth:
            # Plans may cost less than they are allowed to.
            within = min(next_level, bisect_left(levels, probes[-1].cost * (1 - 1e-9)))
        elif within == len(levels):
            raise UnreachableLossError(_unreachable(target, probes[-1]))
        else:
            failing = next_level
        next_level = (failing + within) // 2
    allowed = (each for each in probes if each.growth <= target.growth)
    return min(allowed, key=lambda each: each.cost), probes


def check_cheaper(budget: Budget, target: LossTarget) -> None:
    """UnreachableLossError if no option costs less than the model's own attention."""
    if not budget.levels():
        raise UnreachableLossError(
            f"{target} cannot be reached: no option costs less than the model's own attention.\n"
            "Allow cheaper options, such as 'q,k=v/1' or none."
        )


def _as_share(level: float) -> float:
    """The share of a target that a level meets: rounded up to what a person can type."""
    return min(math.ceil(1e4 * level - 1e-5) / 1e4, 0.9999)


def _unreachable(target: LossTarget, probe: Probe) -> str:
    nearest = replace(target, growth=math.ceil(1e3 * probe.growth) / 1e3)
    return (
        f"{target} cannot be reached: the smallest change, {target.at(probe.share)}, costs "
        f"{probe.growth:.2%} of the loss.\n"
        f"The nearest target is {nearest}, or options that cost less loss. Nothing else was run."
    )
