"""The units of targets for a pretrained model: a layer's part by its change, and all the rest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qkvbench import cost
from qkvbench.cost.budget import Budget, check_reachable
from qkvbench.hub.fit.latency import Steps
from qkvbench.hub.fit.projections import Layer
from qkvbench.hub.fit.tying import Change
from qkvbench.model import Target
from qkvbench.variant import CANONICAL, Plan, write

# What is counted of a layer with a change, or as it is.
Count = Callable[[Layer, Change | None], int]


@dataclass(frozen=True)
class Counting:
    """The unit of a target: ``of_layer`` of each layer, and ``rest`` of everything else."""

    of_layer: Count
    rest: int = 0


def cached_values(layer: Layer, change: Change | None) -> int:
    """The numbers that a layer caches for a token."""
    return cost.cached_values(_plan(layer, change))


def counting(model: Any, layers: Sequence[Layer], target: Target, steps: Steps | None) -> Counting:
    """How the target's quantity is counted; ``steps`` are the measured ones of a latency."""
    match target.quantity:
        case "cache":
            return Counting(cached_values)
        case "params":
            own = sum(_parameters(layer, None) for layer in layers)
            return Counting(_parameters, sum(each.numel() for each in model.parameters()) - own)
        case "macs":
            tokens = target.tokens
            assert tokens, "the length is part of the target"
            return Counting(
                lambda layer, change: cost.attention_macs(_plan(layer, change), tokens),
                tokens * _other_matrices(model, layers),
            )
        case "latency":
            assert steps, "a latency is measured first"
            return Counting(_nanoseconds(steps, len(layers)))


def budget(
    counted: Counting, layers: Sequence[Layer], allowed: Mapping[str, Change], target: Target
) -> Budget:
    """The cost of each option, the layer as it is first; ValueError if none is so small."""
    values = [
        [counted.of_layer(layer, change) for change in (None, *allowed.values())]
        for layer in layers
    ]
    full = counted.rest + sum(row[0] for row in values)
    costs = tuple(tuple(float(each - row[0]) for each in row) for row in values)
    variants = (CANONICAL, *(change.variant for change in allowed.values()))
    found = Budget(variants, costs, full, target.share * full)
    check_reachable(found, target)
    return found


def _plan(layer: Layer, change: Change | None) -> Plan:
    return layer.family.plan(change.variant if change else CANONICAL, layer.geometry)


def _parameters(layer: Layer, change: Change | None) -> int:
    """The parameters of a layer's attention, without biases."""
    parameters = _plan(layer, change).parameters
    return sum(math.prod(each.shape) for each in parameters if not each.name.endswith("bias"))


def _other_matrices(model: Any, layers: Sequence[Layer]) -> int:
    """The numbers of all matrices that each token is multiplied by, outside of attention."""
    inside = {id(each) for layer in layers for each in layer.attention.parameters()}
    # A head that is the table of embeddings is a module of its own, and counted.
    modules = (each for each in model.modules() if not isinstance(each, nn.Embedding))
    matrices = (each for module in modules for each in module.parameters(recurse=False))
    return sum(each.numel() for each in matrices if each.ndim > 1 and id(each) not in inside)


def _nanoseconds(steps: Steps, layers: int) -> Count:
    """A layer's part of a step, and what a change takes off it: the same for every layer."""

    def count(_: Layer, change: Change | None) -> int:
        saved = steps.saving_s(write(change.variant)) if change else 0.0
        return round(1e9 * (steps.step_s - saved) / layers)

    return count
