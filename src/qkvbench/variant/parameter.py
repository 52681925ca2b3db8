"""One learned tensor: its name, shape, initial distribution, weight decay and dtype."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Constant:
    """All entries begin at `value`."""

    value: float


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0; the standard deviation is a field of the model's `Init`, over `over`."""

    std: Literal["weight_std", "embedding_std", "position_std", "rotation_std"] = "weight_std"
    over: float = 1.0


@dataclass(frozen=True)
class Rotation:
    """For each head the rotation that a learned rotation begins as, whose `numbers` are drawn."""

    numbers: Normal


@dataclass(frozen=True)
class Parameter:
    """A learned tensor.

    ``decay``: AdamW's weight decay applies. ``dtype``: "compute" if matrix products read it, in the
    compute dtype of mixed precision; "full" if it is always read in its own.
    """

    name: str
    shape: tuple[int, ...]
    init: Constant | Normal | Rotation = Normal()
    decay: bool = True
    dtype: Literal["compute", "full"] = "compute"

    def under(self, prefix: str) -> "Parameter":
        """The same tensor as a part of something named `prefix`."""
        return replace(self, name=f"{prefix}.{self.name}")


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> tuple[Parameter, ...]:
    """A linear layer: ``name.weight`` (outputs, inputs) and, unless left out, ``name.bias``."""
    weight = Parameter(f"{name}.weight", (outputs, inputs))
    offset = Parameter(f"{name}.bias", (outputs,), Constant(0.0), decay=False)
    return (weight, offset) if bias else (weight,)
