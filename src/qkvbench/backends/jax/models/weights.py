"""Weights under the names that all backends share: one flat mapping, and how it begins."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file, save_file

from qkvbench.model import Model, initial_value
from qkvbench.variant import Parameter

Weights = Mapping[str, jax.Array]
Parameters = Mapping[str, Parameter]


def part(weights: Weights, name: str) -> Weights:
    """The weights of one part, under the names that it gives them itself."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def start(parameters: Parameters, model: Model, seed: int) -> dict[str, jax.Array]:
    """Every weight with the initial value of its seed and name."""
    return {
        name: jnp.asarray(initial_value(model.init, seed, parameter))
        for name, parameter in parameters.items()
    }


def checked(parameters: Parameters, weights: Weights) -> dict[str, jax.Array]:
    """The weights; ValueError where their names or shapes are not these."""
    if parameters.keys() != weights.keys():
        differing = sorted(parameters.keys() ^ weights.keys())
        raise ValueError(f"These weights are in one of model and file only: {differing[:4]} ...")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(
                f"{name} is {parameter.shape} in the model and {weights[name].shape} in the file."
            )
    return dict(weights)


def matching(parameters: Parameters, weights: Weights) -> dict[str, jax.Array]:
    """Those of the weights that agree in name and shape with these.

    ValueError where a block's weights do not all agree: what comes of some of them is no start.
    """
    agreeing = [
        name
        for name, parameter in parameters.items()
        if name in weights and parameter.shape == weights[name].shape
    ]
    blocks = {name for name in (*parameters, *weights) if "blocks" in name.split(".")}
    if lacking := sorted(blocks.difference(agreeing)):
        own, given = parameters.get(lacking[0]), weights.get(lacking[0])
        raise ValueError(
            f"A start must agree with the model in every weight of its layers; {lacking[0]} "
            f"{_size(own and own.shape, 'the model')} and "
            f"{_size(None if given is None else given.shape, 'the file')}."
        )
    return {name: weights[name] for name in agreeing}


def save(weights: Weights, path: Path) -> None:
    """Write all weights to a safetensors file, each once: what is tied has one weight."""
    save_file(dict(weights), path)


def read(path: Path) -> dict[str, jax.Array]:
    """The weights in a safetensors file."""
    return load_file(path)


def copied(weights: Weights) -> dict[str, np.ndarray]:
    """The same numbers in memory of their own, which a later step does not reuse."""
    return {name: np.array(value) for name, value in weights.items()}


def _size(shape: tuple[int, ...] | None, place: str) -> str:
    return f"is not in {place}" if shape is None else f"is {shape} in {place}"
