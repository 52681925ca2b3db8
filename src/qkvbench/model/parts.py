"""The parts of a block besides attention: feed-forwards and norms, closed unions of values.

Each gives its own learned tensors and multiply-accumulates; each backend has one module for them.
"""

from dataclasses import dataclass

from qkvbench.variant import Constant, Parameter, linear


@dataclass(frozen=True)
class FeedForward:
    """Two matrices with a GELU between; `width` is the number of hidden units."""

    width: int

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        return (*linear("up", self.width, d_model), *linear("down", d_model, self.width))

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return 2 * d_model * self.width


@dataclass(frozen=True)
class LayerNorm:
    """Normalization before each part of a block, with scale and offset. arXiv:1607.06450."""

    eps: float = 1e-5

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        return (
            Parameter("weight", (d_model,), Constant(1.0), decay=False, dtype="full"),
            Parameter("bias", (d_model,), Constant(0.0), decay=False, dtype="full"),
        )


AnyFeedForward = FeedForward
AnyNorm = LayerNorm
