"""The values a model begins with: the same for the same seed and name, in every backend and arm."""

import numpy as np
from jaxtyping import Float

from qkvbench.model.rng import generator
from qkvbench.model.spec import Model


def initial_value(
    model: Model, seed: int, name: str, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """The fp32 value with which the weight `name` begins."""
    match name.split(".")[-2:]:
        case [_, "bias"]:
            return np.zeros(shape, np.float32)
        case [part, "weight"] if part.endswith("norm"):
            return np.ones(shape, np.float32)
        case [_, "scale" | "temperature"]:
            return np.ones(shape, np.float32)
        case [*_, "logit_scale"]:
            # arXiv:2103.00020, section 2.5: the initial factor of a cosine is 1/0.07.
            return np.full(shape, -np.log(0.07), np.float32)
        case [_, "features"]:
            # An arm with a correction begins as the same function as the arm without.
            return np.zeros(shape, np.float32)
        case [_, "table" | "class_token"]:
            deviation = model.init.embedding_std
        case [_, "positions"]:
            deviation = model.init.position_std
        case [_, "rotation"]:
            deviation = model.init.rotation_std / model.geometry.head_dim**0.5
        case _:
            deviation = model.init.weight_std or shape[-1] ** -0.5
    draw = generator(seed, "start", name).standard_normal(shape, dtype=np.float32)
    return draw * np.float32(deviation)
