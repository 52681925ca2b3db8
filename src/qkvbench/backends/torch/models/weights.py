"""Weights under the names that all backends share, and how they begin."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.model import Model, initial_value, model_parameters
from qkvbench.variant import Parameter


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Every learned tensor by its shared name: live views, so writing to one changes the module."""
    named: dict[str, Tensor] = {}
    layers = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    for name, layer in layers.items():
        named |= {f"{name}.{key}": tensor for key, tensor in layer.named_weights().items()}
    for name, tensor in module.named_parameters():
        if not any(name.startswith(f"{layer}.") for layer in layers):
            named[name] = tensor
    return named


@torch.no_grad()
def start(module: nn.Module, model: Model, seed: int) -> None:
    """Give every weight the initial value that its seed and name say."""
    parameters = model_parameters(model)
    for name, tensor in named_weights(module).items():
        tensor.copy_(torch.from_numpy(initial_value(model.init, seed, parameters[name])))


def parameters_of(module: nn.Module, model: Model) -> dict[str, Parameter]:
    """The plan's parameter behind each `nn.Parameter` of the module, by its torch name.

    Of fused projections the first one, which has the weight decay and dtype of all.
    """
    parameters = model_parameters(model)
    layers = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    found: dict[str, Parameter] = {}
    for name, layer in layers.items():
        shared = layer.shared_names()
        found |= {f"{name}.{own}": parameters[f"{name}.{of}"] for own, of in shared.items()}
    for name, _ in module.named_parameters():
        if name not in found:
            found[name] = parameters[name]
    return found


@torch.no_grad()
def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into the module; ValueError where names or shapes do not agree."""
    named = named_weights(module)
    if named.keys() != weights.keys():
        differing = sorted(named.keys() ^ weights.keys())
        raise ValueError(f"These weights are in one of model and file only: {differing[:4]} ...")
    for name, tensor in named.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the model and "
                f"{tuple(weights[name].shape)} in the file."
            )
        tensor.copy_(weights[name])


@torch.no_grad()
def load_matching(module: nn.Module, weights: dict[str, Tensor]) -> tuple[str, ...]:
    """Copy the weights that agree in name and shape with the module's; their names.

    ValueError where a block's weights do not all agree: what comes of some of them is no start.
    """
    named = named_weights(module)
    agreeing = [
        name
        for name, tensor in named.items()
        if name in weights and tensor.shape == weights[name].shape
    ]
    blocks = {name for name in (*named, *weights) if _in_a_block(name)}
    if lacking := sorted(blocks.difference(agreeing)):
        raise ValueError(
            f"A start must agree with the model in every weight of its layers; {lacking[0]} "
            f"{_size(named.get(lacking[0]), 'the model')} and "
            f"{_size(weights.get(lacking[0]), 'the file')}."
        )
    for name in agreeing:
        named[name].copy_(weights[name])
    return tuple(agreeing)


def save(module: nn.Module, path: Path) -> None:
    """Write all weights to a safetensors file, each once: what is tied has one weight."""
    save_file(
        {name: tensor.detach().clone() for name, tensor in named_weights(module).items()}, path
    )


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, for `load`."""
    return load_file(path)


def opened(paths: Sequence[Path]) -> dict[str, Callable[[], np.ndarray]]:
    """The tensors of safetensors files by name, each read as fp32 when it is asked for.

    SafetensorError or OSError where a file is none.
    """
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for path in paths:
        file = safe_open(path, framework="pt")
        # An open safetensors file has keys and is no mapping.
        tensors |= {name: partial(_array, file, name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _in_a_block(name: str) -> bool:
    return "blocks" in name.split(".")


def _size(weight: Tensor | None, place: str) -> str:
    return f"is not in {place}" if weight is None else f"is {tuple(weight.shape)} in {place}"


def _array(file: Any, name: str) -> np.ndarray:
    return file.get_tensor(name).float().numpy()
