"""The initial values of a model: the same for the same seed and name, in every backend and arm."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from qkvbench.model.rng import generator
from qkvbench.model.rotation import rotation
from qkvbench.model.spec import Init
from qkvbench.variant import Constant, Normal, Parameter, Rotation


def initial_value(init: Init, seed: int, parameter: Parameter) -> Float[np.ndarray, "..."]:
    """The fp32 value with which a learned tensor begins."""
    shape = parameter.shape
    match parameter.init:
        case Constant(value):
            return np.full(shape, value, np.float32)
        case Normal(std, over):
            chosen = getattr(init, std)
            # None is 1/sqrt(fan-in).
            deviation = shape[-1] ** -0.5 if chosen is None else chosen
            purpose = "start again" if init.again else "start"
            draw = generator(seed, purpose, parameter.name).standard_normal(shape, dtype=np.float32)
            return draw * np.float32(deviation / over)
        case Rotation(numbers):
            # Named as those of a learned rotation in its place, which so begins as the same matrix.
            heads, width, _ = shape
            name = f"{parameter.name.rpartition('.')[0]}.rotation"
            of = replace(
                parameter, name=name, shape=(heads, width * (width - 1) // 2), init=numbers
            )
            return rotation(initial_value(init, seed, of), width)
