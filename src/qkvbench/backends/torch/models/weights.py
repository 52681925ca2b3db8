"""Weights by the names that all backends share: initial values, loading and saving."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qkvbench.backends.common.checks import Shapes, check_shapes, matching_names, renamed
from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.models.gated import GatedAttention, plain_name
from qkvbench.model import Model, initial_value, model_parameters
from qkvbench.variant import Constant, Parameter

# The prefix of what gates learn.
GATES = "gates."


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """All learned tensors by name. They are views: writing to one changes the module."""
    named: dict[str, Tensor] = {}
    layers = _attention_layers(module)
    for name, layer in layers.items():
        named |= {f"{name}.{key}": tensor for key, tensor in layer.named_weights().items()}
    for name, tensor in module.named_parameters():
        if not any(name.startswith(f"{layer}.") for layer in layers):
            named[name] = tensor
    return named


@torch.no_grad()
def start(module: nn.Module, model: Model, seed: int) -> None:
    """Set every weight to its initial value, which its name and the seed determine."""
    parameters = _parameters(module, model)
    for name, tensor in named_weights(module).items():
        tensor.copy_(torch.from_numpy(initial_value(model.init, seed, parameters[name])))


def parameters_of(module: nn.Module, model: Model) -> dict[str, Parameter]:
    """The plan's parameter behind each `nn.Parameter` of the module, by its torch name.

    Of fused projections the first one, which has the weight decay and dtype of all.
    """
    parameters, layers = _parameters(module, model), _attention_layers(module)
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
    """Copy `weights` into the module; ValueError if names or shapes differ."""
    named = named_weights(module)
    check_shapes(_shapes(named), _shapes(weights))
    for name, tensor in named.items():
        tensor.copy_(weights[name])


@torch.no_grad()
def load_matching(module: nn.Module, weights: dict[str, Tensor]) -> tuple[str, ...]:
    """Copy the weights that match in name and shape, and return their names.

    ValueError if any weight of a block does not match: a partly loaded block is of no use.
    """
    named = named_weights(module)
    names = matching_names(_shapes(named), _shapes(weights))
    for name in names:
        named[name].copy_(weights[name])
    return tuple(names)


@torch.no_grad()
def load_other_attention(
    module: nn.Module, model: Model, weights: dict[str, Tensor]
) -> tuple[str, ...]:
    """Copy the weights of a model of the same size with other attention, or with gates.

    What agrees in name and shape is copied; a matrix of fewer heads is the mean of those of the
    heads that it replaces (arXiv:2305.13245, section 2.1); the rest stays. Returns the names of
    what was set.
    """
    parameters, widths = _parameters(module, model), _head_widths(module)
    given = {(plain_name(name), tuple(each.shape)): each for name, each in weights.items()}
    found: list[str] = []
    for name, tensor in named_weights(module).items():
        plain, shape = parameters[name].name, tuple(tensor.shape)
        value = given.get((plain, shape))
        width = model.geometry.head_dim
        if value is None and widths.get((plain.rpartition(".")[0], shape[0])) == width:
            heads = shape[0] // width
            others = (each for (of, _), each in given.items() if of == plain)
            value = next((_merged(each, heads, width) for each in others), None)
        if value is not None:
            tensor.copy_(value)
            found.append(name)
    return tuple(found)


def save(module: nn.Module, path: Path) -> None:
    """Write all weights to a safetensors file; tied weights once."""
    save_file(
        {name: tensor.detach().clone() for name, tensor in named_weights(module).items()}, path
    )


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, for `load`; ValueError if the file is damaged."""
    try:
        return renamed(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def lazy_tensors(paths: Sequence[Path]) -> dict[str, Callable[[], np.ndarray]]:
    """The tensors of safetensors files by name, each read as fp32 when its function is called.

    SafetensorError or OSError if a file is not one; the function raises a TypeError for integers,
    which are codes of a quantized tensor and not its values.
    """
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for path in paths:
        file = safe_open(path, framework="pt")
        # The open file has `keys()` but is not iterable.
        tensors |= {name: partial(_array, file, name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _shapes(weights: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _array(file: Any, name: str) -> np.ndarray:
    tensor: Tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name} has integers ({kind}) of shape {tuple(tensor.shape)}.")
    return tensor.float().numpy()


def _attention_layers(module: nn.Module) -> dict[str, Attention | GatedAttention]:
    """Every attention layer of the module by its name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, Attention | GatedAttention)
    }


def _parameters(module: nn.Module, model: Model) -> dict[str, Parameter]:
    """The parameter behind each name of `named_weights`; those of options have their plans' names.

    So a layer that is an option begins with the values that it has without gates.
    """
    found = model_parameters(model)
    for prefix, layer in _attention_layers(module).items():
        if isinstance(layer, GatedAttention):
            own = layer.parameters_by_name.items()
            found |= {f"{prefix}.{name}": each.under(prefix) for name, each in own}
    for name, tensor in module.named_parameters():
        if name.startswith(GATES):
            found[name] = Parameter(name, tuple(tensor.shape), Constant(0.0), decay=False)
    return found


def _head_widths(module: nn.Module) -> dict[tuple[str, int], int]:
    """The width of the heads of each matrix, by its name and rows."""
    return {
        (f"{prefix}.{root.matrix}", root.rows): root.width
        for prefix, layer in _attention_layers(module).items()
        for plan in layer.plans
        for root in plan.roots
        if root.matrix
    }


def _merged(rows: Tensor, heads: int, width: int) -> Tensor | None:
    """The mean of the rows of the heads that each of fewer heads replaces; None if they do not."""
    if len(rows) % (heads * width):
        return None
    return rows.unflatten(0, (heads, -1, width)).mean(1).flatten(0, 1)
