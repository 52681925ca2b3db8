"""Weights by the names that all backends share: one flat mapping, initial values, files."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from qkvbench.backends.common.checks import Shapes, check_shapes, matching_names, renamed
from qkvbench.model import Model, initial_value
from qkvbench.variant import Parameter

Weights = Mapping[str, jax.Array]
Parameters = Mapping[str, Parameter]


def part(weights: Weights, name: str) -> Weights:
    """The weights of a submodule, by its own names."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def start(parameters: Parameters, model: Model, seed: int) -> dict[str, jax.Array]:
    """Every weight with its initial value, which its name and the seed determine."""
    return {
        name: jnp.asarray(initial_value(model.init, seed, parameter))
        for name, parameter in parameters.items()
    }


def check_weights(parameters: Parameters, weights: Weights) -> dict[str, jax.Array]:
    """The weights; ValueError if names or shapes differ."""
    check_shapes(_shapes(parameters), _shapes(weights))
    return dict(weights)


def matching(parameters: Parameters, weights: Weights) -> dict[str, jax.Array]:
    """The weights that match in name and shape.

    ValueError if any weight of a block does not match: a partly loaded block is of no use.
    """
    return {name: weights[name] for name in matching_names(_shapes(parameters), _shapes(weights))}


def _shapes(weights: Weights | Parameters) -> Shapes:
    return {name: value.shape for name, value in weights.items()}


def save(weights: Weights, path: Path) -> None:
    """Write all weights to a safetensors file; tied weights once."""
    save_file(dict(weights), path)


def read(path: Path) -> dict[str, jax.Array]:
    """The weights in a safetensors file; ValueError if it is damaged."""
    try:
        return renamed(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def copied(weights: Weights) -> dict[str, np.ndarray]:
    """Copies in host memory, which a later step with donated arguments does not overwrite."""
    return {name: np.array(value) for name, value in weights.items()}
