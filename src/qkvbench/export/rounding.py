"""Matrices in few bits, as the program without Python reads them."""

from collections.abc import Mapping, Sequence
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
# Every input of a matrix -> how much its errors count.
Importance = Float[Tensor, " inputs"]

LEAST, LARGEST = -8, 7
# In how many steps a group's largest number is reached, or would be if it were not cut off. More
# than nine make the error here smaller and that of a model larger: what is cut off has one sign.
STEPS = (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
# Rows that are fitted at once: they bound the memory.
ROWS = 2048


def rounded(
    matrix: Matrix, kind: FewBits, importance: Importance | None = None
) -> tuple[Tensor, Tensor]:
    """A matrix in few bits, with its scales in fp32.

    int8 has one scale for each row: (outputs,), and is rounded to it. int4 has two numbers a byte
    and a scale for each group: (outputs, inputs / 2) and (outputs, inputs / GROUP). Those scales
    are fitted, for inputs that matter as much as `importance` says, or all the same.
    """
    matrix = matrix.detach().float()
    if kind == "int8":
        rows, scales = quantize(matrix[None, None], CACHE_FORMATS[kind])
        assert scales is not None
        return rows[0, 0], scales[0, 0]
    weight = torch.ones(matrix.shape[1]) if importance is None else importance.float()
    groups = matrix.unflatten(1, (-1, GROUP))
    fits = [_fitted(rows, weight.view(-1, GROUP)) for rows in groups.split(ROWS)]
    numbers, scales = (torch.cat(each) for each in zip(*fits, strict=True))
    return pack_int4(numbers.flatten(1)), scales


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
def mean_squares(network: Decoder, tokens: Int[Tensor, "windows time"]) -> Mapping[str, Importance]:
    """The mean square of each input of every matrix of the blocks, by the matrix's name.

    Numbers of a matrix that meet large inputs are those whose errors a text would see.
    """
    sums: dict[str, Tensor] = {}

    def recorder(names: Sequence[str]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares = args[0].flatten(0, -2).float().square().sum(0)
            sums.update({name: sums.get(name, 0) + squares for name in names})

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
    return {name: each / tokens.numel() for name, each in sums.items()}


def _matrices(network: Decoder, name: str) -> list[str]:
    """The names of the weights that a module has: several, if it makes Q, K and V at once."""
    parent, _, own = name.rpartition(".")
    owner = network.get_submodule(parent)
    if isinstance(owner, Attention) and own == "projection":
        return [f"{parent}.{matrix}.weight" for matrix in owner.plan.matrix_rows]
    return [f"{name}.weight"]
