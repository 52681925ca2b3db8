"""Matrices in few bits, as the program without Python reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.backends.torch import Decoder
from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.cache.quantize import pack_int4, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model.quantization import GROUP

FewBits = Literal["int8", "int4"]
Matrix = Float[Tensor, "outputs inputs"]

LEAST, LARGEST = -8, 7
# In how many steps a group's largest number is reached, or would be if it were not cut off. More
# than nine make the error here smaller and that of a model larger: what is cut off has one sign.
STEPS = (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
# Rows that are fitted at once: they bound the memory.
ROWS = 2048
# What is added to the mean square of each input before its errors are passed on, as a share of it.
DAMPING = 0.01
# Errors are passed on if that leaves less than this share of them. At a half SmolLM2 gained .006
# nats on texts of the kind that was read, and lost .022 on others.
WORTHWHILE = 0.1


@dataclass(frozen=True)
class Inputs:
    """The inputs of a matrix in a text: their mean squares, and their mean products if kept."""

    squares: Float[Tensor, " inputs"]
    products: Float[Tensor, "inputs inputs"] | None = None


def rounded(matrix: Matrix, kind: FewBits, inputs: Inputs | None = None) -> tuple[Tensor, Tensor]:
    """A matrix in few bits, with its scales in fp32.

    int8 has one scale for each row: (outputs,), and is rounded to it. int4 has two numbers a byte
    and a scale for each group: (outputs, inputs / 2) and (outputs, inputs / GROUP). Those scales
    are fitted: each input matters as much as its mean square, or all the same. If products are
    known, too, and inputs so alike that it helps much, each column makes good for those before it.
    """
    matrix = matrix.detach().float()
    if kind == "int8":
        rows, scales = quantize(matrix[None, None], CACHE_FORMATS[kind])
        assert scales is not None
        return rows[0, 0], scales[0, 0]
    squares = torch.ones(matrix.shape[1]) if inputs is None else inputs.squares.float()
    groups, weight = matrix.unflatten(1, (-1, GROUP)), squares.view(-1, GROUP)
    fits = [_fitted(rows, weight) for rows in groups.split(ROWS)]
    numbers, scales = (torch.cat(each) for each in zip(*fits, strict=True))
    if inputs is not None and inputs.products is not None:
        own = _passed_on(matrix, inputs.products)
        before, after = (_error(matrix, each, inputs.products) for each in ((numbers, scales), own))
        if after < WORTHWHILE * before:
            numbers, scales = own
    return pack_int4(numbers.flatten(1)), scales


def _error(matrix: Matrix, fit: tuple[Tensor, Tensor], products: Tensor) -> float:
    """The mean squared error of the matrix's outputs, summed over them."""
    numbers, scales = fit
    wrong = (numbers * scales[..., None]).flatten(1) - matrix
    return float(((wrong @ products) * wrong).sum())


def _passed_on(
    matrix: Matrix, products: Float[Tensor, "inputs inputs"]
) -> tuple[Int[Tensor, "outputs groups group"], Float[Tensor, "outputs groups"]]:
    """Columns are rounded one after the other; those that follow make good for the error so far.

    The rule of GPTQ, arXiv:2210.17323: the rest of the row is what fits its outputs best. A tie
    that was fitted to a checkpoint needs it: there V is a small difference of large numbers, which
    the output projection makes large again, and errors that do not know of each other with it.
    """
    squares = products.diagonal()
    # Inputs that are never there must not make it singular.
    added = DAMPING * squares + 1e-9 * squares.mean()
    inverse = torch.linalg.inv((products + torch.diag(added)).double())
    onward = torch.linalg.cholesky(inverse, upper=True).float()
    left, numbers, scales = matrix.clone(), [], []
    for first in range(0, matrix.shape[1], GROUP):
        last = first + GROUP
        group = left[:, first:last]
        _, scale = _fitted(group[:, None], squares[None, first:last].float())
        errors = torch.empty_like(group)
        made = torch.empty_like(group)
        for column in range(GROUP):
            row = onward[first + column, first:last]
            made[:, column] = _to_nearest(group[:, column], scale[:, 0])
            wrong = group[:, column] - made[:, column] * scale[:, 0]
            errors[:, column] = wrong / row[column]
            group[:, column + 1 :] -= errors[:, column, None] * row[column + 1 :]
        left[:, last:] -= errors @ onward[first:last, last:]
        numbers.append(made)
        scales.append(scale[:, 0])
    return torch.stack(numbers, dim=1).to(torch.int8), torch.stack(scales, dim=1)


def _fitted(
    groups: Float[Tensor, "rows groups group"], weight: Float[Tensor, "groups group"]
) -> tuple[Int[Tensor, "rows groups group"], Float[Tensor, "rows groups"]]:
    """The numbers and the scale of each group with the least weighted squared error, of STEPS.

    Each candidate is a scale that is rounded to, then fitted to the numbers that came of it, and
    rounded to again. Its sign gives -8, which has no opposite, to the largest number.
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    # Any scale serves a group of zeros.
    largest = torch.where(largest == 0, 1, largest)
    least = torch.full(groups.shape[:-1], torch.inf)
    numbers, scales = torch.zeros_like(groups), torch.zeros(groups.shape[:-1])
    for steps in STEPS:
        scale = -largest / steps
        coarse = _to_nearest(groups, scale)
        norm = (weight * coarse.square()).sum(-1, keepdim=True)
        fit = (weight * coarse * groups).sum(-1, keepdim=True) / norm
        # Without a weight, or of zeros, nothing is to be fitted.
        scale = torch.where((norm > 0) & (fit != 0), fit, scale)
        found = _to_nearest(groups, scale)
        error = (weight * (found * scale - groups).square()).sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        numbers = torch.where(better[..., None], found, numbers)
        scales = torch.where(better, scale[..., 0], scales)
    return numbers.to(torch.int8), scales


def _to_nearest(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale).round().clamp(LEAST, LARGEST)


@torch.inference_mode()
def inputs_of(network: Decoder, tokens: Int[Tensor, "windows time"]) -> Mapping[str, Inputs]:
    """The inputs of every matrix of the blocks, by the matrix's name.

    Numbers of a matrix that meet large inputs are those whose errors a text would see. Products are
    of output projections alone: all of them would be several times the model.
    """
    squares: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}

    def recorder(names: Sequence[str]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].flatten(0, -2).float()
            for name in names:
                squares[name] = squares.get(name, 0) + rows.square().sum(0)
                if name.endswith("attention.o.weight"):
                    products[name] = products.get(name, 0) + rows.T @ rows

        return hook

    hooks = [
        module.register_forward_pre_hook(recorder(_matrices(network, name)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for window in tokens:
            network(window[None])
    finally:
        for hook in hooks:
            hook.remove()
    count = tokens.numel()
    return {
        name: Inputs(each / count, products[name] / count if name in products else None)
        for name, each in squares.items()
    }


def _matrices(network: Decoder, name: str) -> list[str]:
    """The names of the weights that a module has: several, if it makes Q, K and V at once."""
    parent, _, own = name.rpartition(".")
    owner = network.get_submodule(parent)
    if isinstance(owner, Attention) and own == "projection":
        return [f"{parent}.{matrix}.weight" for matrix in owner.plan.matrix_rows]
    return [f"{name}.weight"]
