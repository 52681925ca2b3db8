"""How many numbers a model learns: the sizes of its parameters, by part."""

import math
from dataclasses import astuple, dataclass

from qkvbench.model import Model, parameters_by_part
from qkvbench.variant import Parameter, Plan


@dataclass(frozen=True)
class Parameters:
    """Learned numbers by part; biases included, a tied output matrix counted once."""

    attention: int
    feed_forward: int
    embedding: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def parameters(model: Model) -> Parameters:
    """The learned numbers of `model`, by part."""
    return Parameters(**{part: _count(found) for part, found in parameters_by_part(model).items()})


def attention_parameters(plan: Plan) -> int:
    """The learned numbers of one attention layer, output projection and biases included."""
    return _count(plan.parameters)


def _count(parameters: tuple[Parameter, ...]) -> int:
    return sum(math.prod(parameter.shape) for parameter in parameters)
