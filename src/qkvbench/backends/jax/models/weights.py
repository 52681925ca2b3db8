"""Weights under the names that all backends share: one flat mapping, and how it begins."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file, save_file

from qkvbench.model import Model
from qkvbench.model.init import initial_value

Weights = Mapping[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]


def part(weights: Weights, name: str) -> Weights:
    """The weights of one part, under the names that it gives them itself."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def named(name: str, shapes: Shapes) -> Shapes:
    """A part's shapes under the names that they have in the whole."""
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def start(shapes: Shapes, model: Model, seed: int) -> dict[str, jax.Array]:
    """Every weight with the initial value that its seed and name say."""
    return {
        name: jnp.asarray(initial_value(model, seed, name, shape)) for name, shape in shapes.items()
    }


def checked(shapes: Shapes, weights: Weights) -> dict[str, jax.Array]:
    """The weights; ValueError where their names or shapes are not these."""
    if shapes.keys() != weights.keys():
        differing = sorted(shapes.keys() ^ weights.keys())
        raise ValueError(f"These weights are in one of model and file only: {differing[:4]} ...")
    for name, shape in shapes.items():
        if shape != weights[name].shape:
            raise ValueError(
                f"{name} is {shape} in the model and {weights[name].shape} in the file."
            )
    return dict(weights)


def matching(shapes: Shapes, weights: Weights) -> dict[str, jax.Array]:
    """Those of the weights that agree in name and shape with these.

    ValueError where a block's weights do not all agree: what comes of some of them is no start.
    """
    agreeing = [
        name for name, shape in shapes.items() if name in weights and shape == weights[name].shape
    ]
    blocks = {name for name in (*shapes, *weights) if "blocks" in name.split(".")}
    if lacking := sorted(blocks.difference(agreeing)):
        given = weights.get(lacking[0])
        raise ValueError(
            f"A start must agree with the model in every weight of its layers; {lacking[0]} "
            f"{_size(shapes.get(lacking[0]), 'the model')} and "
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
