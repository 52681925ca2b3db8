"""One root for K and V of some heads: the problem of a tie, and what a root costs the output."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qkvbench.cost import CACHE_FORMATS, CacheFormat

# The maps of K that fold into the query: with RoPE a complex number for each pair of coordinates,
# after a norm of heads none.
Freedom = Literal["any", "complex", "none"]


@dataclass(frozen=True)
class Rounding:
    """The error of a stored number: its variance, as a share of the mean square of its group.

    ``group`` numbers of a row share a scale: all of them if it is None or no divisor, and each has
    its own if it is 1.
    """

    share: float
    group: int | None

    @property
    def few_bits(self) -> bool:
        """Whether the error of a number depends on larger ones beside it."""
        return self.group != 1

    def of(self, squares: Tensor) -> Tensor:
        """The variance of the error of each number, from the mean squares of all."""
        group = self.group
        if group is None or len(squares) % group:
            group = len(squares)
        groups = squares.unflatten(0, (-1, group))
        return self.share * groups.mean(1, keepdim=True).expand_as(groups).flatten()


def _of_integers(form: CacheFormat, width: int) -> Rounding:
    """The rounding of normal numbers to integers with a scale.

    The largest of n has a square of about 2 ln n, and an error is uniform within a step.
    """
    steps = 2 ** (form.bits - 1) - 1
    return Rounding(2 * math.log(form.group or width) / (12 * steps**2), form.group)


# By the rows that a cache stores. The default has weights in 16 bits, too. A row of int8 has one
# scale, whatever its width; 64 numbers are a usual one.
DEFAULT_ROWS = "bf16"
ROUNDINGS: Mapping[str, Rounding] = {
    DEFAULT_ROWS: Rounding(2.0**-18, 1),
    "int8": _of_integers(CACHE_FORMATS["int8"], 64),
    "int4": _of_integers(CACHE_FORMATS["int4"], 64),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Key/value heads that are to share one root, and what an error of each costs.

    ``keys`` and ``values`` are their matrices, ``key_costs`` and ``value_costs`` the quadratic
    forms of an error, ``inputs`` the second moment of the input with its symmetric root, and
    ``rounding`` that of the rows which a cache stores.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    key_costs: Sequence[Tensor]
    value_costs: Sequence[Tensor]
    inputs: Tensor
    freedom: Freedom
    inputs_root: Tensor
    rounding: Rounding = ROUNDINGS[DEFAULT_ROWS]


@dataclass(frozen=True, eq=False)
class Root:
    """A root, and the maps that make K and V of each head from it.

    ``scaled``: its numbers have the sizes that rounding asks for already.
    """

    matrix: Tensor
    key_maps: Sequence[Tensor]
    value_maps: Sequence[Tensor]
    scaled: bool = False

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The maps of K, then those of V."""
        return (*self.key_maps, *self.value_maps)


def error(problem: Problem, root: Root) -> float:
    """The expected squared error of the layer's output, to first order."""
    total = 0.0
    parts = (
        (problem.keys, root.key_maps, problem.key_costs),
        (problem.values, root.value_maps, problem.value_costs),
    )
    for matrices, maps, costs in parts:
        for matrix, made, cost in zip(matrices, maps, costs, strict=True):
            difference = matrix - made @ root.matrix
            total += float((cost @ difference @ problem.inputs * difference).sum())
    return total


def rounding_error(problem: Problem, root: Root) -> float:
    """The expected squared error of the output that comes from rounded rows."""
    costs = row_costs(problem, root).diagonal()
    return float(costs @ row_noise(problem, costs, row_squares(problem, root)))


def row_costs(problem: Problem, root: Root) -> Tensor:
    """The quadratic form of an error of a row."""
    costs = (*problem.key_costs, *problem.value_costs)
    forms = [made.mT @ cost @ made for made, cost in zip(root.maps, costs, strict=True)]
    return torch.stack(forms).sum(0)


def row_squares(problem: Problem, root: Root) -> Tensor:
    """The mean square of each number of a row."""
    return ((root.matrix @ problem.inputs) * root.matrix).sum(1)


def best_scale(problem: Problem, costs: Tensor, squares: Tensor) -> Tensor:
    """The factor of each number of a row with which rounding costs least.

    ``costs`` are those of a squared error of each, ``squares`` their mean squares. The two numbers
    of a pair have the same factor, so that it commutes with RoPE; a norm of heads allows none.
    """
    if problem.freedom == "none":
        return torch.ones_like(costs)
    pairs = [each.unflatten(0, (2, -1)).sum(0).clamp_min(1e-30) for each in (costs, squares)]
    return (pairs[0] / pairs[1]).clamp(1e-12, 1e12).pow(0.25).repeat(2)


def row_noise(problem: Problem, costs: Tensor, squares: Tensor) -> Tensor:
    """The variance that rounding adds to each number of a row, at the best scale."""
    scale = best_scale(problem, costs, squares)
    return problem.rounding.of(scale**2 * squares) / scale**2


def noise_costs(problem: Problem, costs: Tensor, squares: Tensor) -> Tensor:
    """The cost of each number's square by the errors that it adds, at the best scale."""
    scale = best_scale(problem, costs, squares)
    return problem.rounding.of(costs / scale**2) * scale**2
