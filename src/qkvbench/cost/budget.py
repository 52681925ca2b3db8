"""Plans within a budget: one option for each layer, with the least damage that it allows.

Damages of layers are taken as additive, and costs are; the choice is then exact, by mixed-integer
programming, with or without what pairs of layers do together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qkvbench.cost.cache import cache_bytes_per_token
from qkvbench.cost.operations import macs
from qkvbench.cost.parameters import parameters
from qkvbench.model import Cycle, Gates, Model, Quantity, Target, with_layers

# The number of an option for each layer.
Choice = tuple[int, ...]
# A number for each option of each layer.
Table = Sequence[Sequence[float]]
# The change of damage if two layers have these options at once: (layer, option) twice.
Pairs = Mapping[tuple[tuple[int, int], tuple[int, int]], float]
Spread = Literal["uniform", "first", "last", "random"]
SPREADS: tuple[Spread, ...] = get_args(Spread)

# Costs that are closer than such a part of what options can change are one level.
LEVELS = 64

# Costs are sums of numbers that may not be whole; a limit is met to this share of it.
_TOLERANCE = 1e-9
# The largest damage in the solver, so that 1e-6 is a small part of those that matter.
_SCALE = 1e3


@dataclass(frozen=True)
class Budget:
    """The cost of each option of each layer, over that of the model's own attention, and the most.

    ``full`` is the cost of the model as it is, ``limit`` that of a plan, both whole; ``costs`` are
    differences, below 0 for what is cheaper. A layer can have an option of ``borrowed`` if the
    layer below has option 0.
    """

    options: Cycle
    costs: tuple[tuple[float, ...], ...]
    full: float
    limit: float
    borrowed: frozenset[int] = frozenset()

    def share(self, choice: Choice) -> float:
        """The cost of a choice, as a share of the model's."""
        return (
            1 + sum(row[taken] for row, taken in zip(self.costs, choice, strict=True)) / self.full
        )

    @property
    def left(self) -> float:
        """The most that the costs of a choice may add up to."""
        return self.limit - self.full

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest cost of a choice, as shares of the model's."""
        least, most = (sum(map(end, self.costs)) for end in (min, max))
        if self.borrowed:
            cheapest = least_damage(self.costs, self.costs, most, borrowed=self.borrowed)
            least = sum(row[taken] for row, taken in zip(self.costs, cheapest, strict=True))
        return 1 + least / self.full, 1 + most / self.full

    def allows(self, choice: Choice) -> bool:
        """Whether every layer that reads K and V of the layer below finds them there."""
        return all(taken not in self.borrowed or below == 0 for below, taken in pairwise(choice))

    def within(self, choice: Choice) -> bool:
        """Whether the choice costs at most the limit."""
        spent = sum(row[taken] for row, taken in zip(self.costs, choice, strict=True))
        return spent <= self.left + _TOLERANCE * self.full

    def levels(self) -> list[float]:
        """The costs that choices have, as shares below that of the model, ascending; none if none.

        Of costs that are closer than one part of `LEVELS`, the largest one.
        """
        sums = {0.0}
        least = self.bounds[0] * self.full - self.full
        if least >= -_TOLERANCE * self.full:
            return []
        for row in self.costs:
            apart = {round(one + other, 9): None for one in sums for other in row}
            sums = set(_sparse(sorted(apart), -least / (16 * LEVELS)))
        within = [each for each in sums if least * (1 + _TOLERANCE) <= each < least * _TOLERANCE]
        return [1 + each / self.full for each in _sparse(sorted({least, *within}), -least / LEVELS)]

    def layers(self, choice: Choice) -> Cycle:
        """The variant of each layer."""
        return tuple(self.options[taken] for taken in choice)

    def rounded(self, probabilities: Table) -> Choice:
        """The likeliest choice within the budget, with as many layers whole as it leaves room for.

        A layer that could keep its own attention within the budget does, the likeliest first. No
        other option is taken for being dearer: it need not be better.
        """
        surprise = [[-math.log(max(each, 1e-300)) for each in row] for row in probabilities]
        chosen = list(least_damage(surprise, self.costs, self.left, borrowed=self.borrowed))
        while whole := [
            (surprise[layer][0] - surprise[layer][taken], layer)
            for layer, taken in enumerate(chosen)
            if self._can_be_whole(layer, chosen)
        ]:
            _, layer = min(whole)
            chosen[layer] = 0
        return tuple(chosen)

    def _can_be_whole(self, layer: int, chosen: Sequence[int]) -> bool:
        """Whether the layer has another option, and its own is within the budget."""
        return chosen[layer] != 0 and self.within((*chosen[:layer], 0, *chosen[layer + 1 :]))


def budget(model: Model, gates: Gates) -> Budget:
    """The budget of a target; ValueError if no plan can meet it, or the model has no such cost."""
    cost = _cost_of(model, gates)
    own = (gates.options[0],) * len(model.blocks)
    full = cost(own)
    costs = tuple(
        tuple(cost((*own[:layer], option, *own[layer + 1 :])) - full for option in gates.options)
        for layer in range(len(own))
    )
    target = gates.target
    found = Budget(gates.options, costs, full, target.share * full, gates.borrowed)
    check_reachable(found, target)
    return found


def check_reachable(found: Budget, target: Target) -> None:
    """ValueError if no choice is within the target, which names the nearest that can be."""
    least, _ = found.bounds
    if least <= target.share * (1 + _TOLERANCE):
        return
    if least >= 1 - _TOLERANCE:
        raise ValueError(
            f"{target} cannot be reached: none of these options costs less than the model's "
            "own attention.\nAllow cheaper options, such as 'q,k=v/1'."
        )
    nearest = math.ceil(1e4 * least) / 1e4
    example = Target(target.quantity, nearest, target.tokens)
    raise ValueError(
        f"{target} cannot be reached: the cheapest of these options in each layer leave "
        f"{least:.1%}.\nThe nearest target is {example}; "
        "or allow cheaper options, such as 'q,k=v/1'."
    )


def _cost_of(model: Model, gates: Gates) -> Callable[[Cycle], float]:
    """The cost of a plan in the unit of the target; ValueError if the model has none."""

    def cost(quantity: Quantity, layers: Cycle) -> float:
        changed = with_layers(model, layers)
        match quantity:
            case "params":
                return parameters(changed).total
            case "macs":
                assert gates.target.tokens, "the length is part of the target"
                return macs(changed, gates.target.tokens)
            case "cache":
                return cache_bytes_per_token(changed) or 0
            case "latency":
                times = dict(zip(gates.options, gates.latencies_s, strict=True))
                return sum(times[each] for each in layers)

    if gates.target.quantity == "cache" and any(
        plan and plan.state
        for option in gates.options
        for plan in with_layers(model, (option,) * len(model.blocks)).plans
    ):
        raise ValueError(
            "Linear attention keeps a state that no token makes larger, so a share of the cache of "
            "a token is no bound of it: write --target latency=80%@N or macs=80%@N, or leave out "
            "such --options."
        )
    if gates.target.quantity in ("cache", "latency") and not model.causal:
        raise ValueError(
            f"{model.name} reads its input at once, so it has no cache and decodes nothing: write "
            "params=80% or macs=80%, or take a language model."
        )
    return partial(cost, gates.target.quantity)


def least_damage(
    damages: Table,
    costs: Table,
    limit: float,
    *,
    pairs: Pairs | None = None,
    borrowed: frozenset[int] = frozenset(),
) -> Choice:
    """The choice with the least sum of damages whose costs add up to at most `limit`.

    ``pairs`` are added if both their options are taken. Options of ``borrowed`` are taken if the
    layer below has option 0. ValueError if no choice is within it.
    """
    places = [(layer, option) for layer, row in enumerate(costs) for option in range(len(row))]
    number = {place: at for at, place in enumerate(places)}
    together = list((pairs or {}).items())
    size = len(places) + len(together)
    rows = np.zeros((len(costs), size))
    spent = np.zeros((1, size))
    for (layer, option), at in number.items():
        rows[layer, at] = 1
        spent[0, at] = costs[layer][option]
    most = max(map(abs, (limit, *spent[0]))) or 1.0
    constraints = [
        LinearConstraint(rows, 1, 1),
        LinearConstraint(spent / most, -np.inf, limit / most + _TOLERANCE),
    ]
    above = [(place, at) for place, at in number.items() if place[0] and place[1] in borrowed]
    if above:
        reads = np.zeros((len(above), size))
        for each, ((layer, _), at) in enumerate(above):
            reads[each, [at, number[layer - 1, 0]]] = 1, -1
        constraints.append(LinearConstraint(reads, -np.inf, 0))
    # A pair is 1 if and only if both of its options are taken.
    links = np.zeros((3 * len(together), size))
    bounds = np.zeros(3 * len(together))
    for each, ((one, other), _) in enumerate(together):
        at = len(places) + each
        links[3 * each, [at, number[one]]] = 1, -1
        links[3 * each + 1, [at, number[other]]] = 1, -1
        links[3 * each + 2, [number[one], number[other], at]] = 1, 1, -1
        bounds[3 * each + 2] = 1
    if together:
        constraints.append(LinearConstraint(links, -np.inf, bounds))
    summed = np.array(
        [*(damages[layer][option] for layer, option in places), *(d for _, d in together)]
    )
    solved = milp(
        # The solver stops within an absolute distance of 1e-6 of the best sum, too.
        c=_SCALE * summed / (abs(summed).max() or 1.0),
        integrality=np.ones(size, int),
        bounds=Bounds(0, 1),
        constraints=constraints,
        # By default a choice within 1e-4 of the best one is taken for it.
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise ValueError("No choice of one option for each layer is within this limit.")
    taken = {layer: option for (layer, option), at in number.items() if solved.x[at] > 0.5}
    return tuple(taken[layer] for layer in range(len(costs)))


def _sparse(values: Sequence[float], apart: float) -> list[float]:
    """Ascending values, without those that are closer to the next larger one that is kept."""
    kept: list[float] = []
    for each in reversed(values):
        if not kept or kept[-1] - each >= apart:
            kept.append(each)
    # The smallest is kept: it is what options reach.
    return sorted({*kept, values[0]})


def changed_layers(costs: Table, limit: float) -> dict[int, int]:
    """Each option with which the limit can be met, dearest first: in how many layers it must be.

    The other layers have option 0. All layers have the same costs; of an option that the first
    layer cannot have, it is as if it could.
    """
    # The first layer's differ if an option reads K and V of the layer below: it makes its own.
    layers, row = len(costs), costs[-1]
    excess = sum(each[0] for each in costs) - limit
    saved = {option: row[0] - cost for option, cost in enumerate(row) if cost < row[0]}
    counts = {
        option: math.ceil(excess / saved[option] - _TOLERANCE)
        for option in sorted(saved, key=saved.__getitem__)
    }
    return {option: count for option, count in counts.items() if count <= layers}


def spread(layers: int, option: int, count: int, how: Spread, seed: int = 0) -> Choice:
    """A choice that ignores damages: one option in so many layers, `how` chosen; else 0."""
    order = {
        "first": list(range(layers)),
        "last": list(range(layers))[::-1],
        "uniform": [int((n + 0.5) * layers / count) for n in range(count)],
        "random": [int(n) for n in np.random.default_rng(seed).permutation(layers)],
    }[how]
    chosen = set(order[:count])
    return tuple(option if layer in chosen else 0 for layer in range(layers))
