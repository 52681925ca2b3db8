"""The parts of a block besides attention: feed-forwards and norms, closed unions of values.

Each gives its own learned tensors and multiply-accumulates; each backend has one module for them.
"""

from dataclasses import dataclass
from typing import Literal

from qkvbench.variant import Constant, Parameter, linear


@dataclass(frozen=True)
class FeedForward:
    """Two matrices with a GELU between; `width` is the number of hidden units."""

    width: int

    def parameters(self, d_model: int, *, biases: bool = True) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        up = linear("up", self.width, d_model, bias=biases)
        return (*up, *linear("down", d_model, self.width, bias=biases))

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return 2 * d_model * self.width


@dataclass(frozen=True)
class SwiGLU:
    """down(silu(gate(x)) * up(x)), without biases. arXiv:2002.05202, section 2."""

    width: int
    kind: Literal["swiglu"]

    def parameters(self, d_model: int, *, biases: bool = True) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        del biases
        gate, up = (linear(name, self.width, d_model, bias=False) for name in ("gate", "up"))
        return (*gate, *up, *linear("down", d_model, self.width, bias=False))

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return 3 * d_model * self.width


@dataclass(frozen=True)
class ReLU2:
    """Two matrices with a squared ReLU between. arXiv:2109.08668, section 3."""

    width: int
    kind: Literal["relu2"]

    def parameters(self, d_model: int, *, biases: bool = True) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        return FeedForward(self.width).parameters(d_model, biases=biases)

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return FeedForward(self.width).macs(d_model)


@dataclass(frozen=True)
class Bilinear:
    """down(gate(x) * up(x)), without biases and without an activation. arXiv:2002.05202, eq. 5."""

    width: int
    kind: Literal["bilinear"]

    def parameters(self, d_model: int, *, biases: bool = True) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        return SwiGLU(self.width, "swiglu").parameters(d_model, biases=biases)

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return 3 * d_model * self.width


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


@dataclass(frozen=True)
class RMSNorm:
    """Division by the root mean square, with a learned scale. arXiv:1910.07467, eq. 4."""

    kind: Literal["rms"]
    eps: float = 1e-5
    scale: bool = True

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """Its learned tensors."""
        return LayerNorm().parameters(d_model)[:1] if self.scale else ()


@dataclass(frozen=True)
class DynamicTanh:
    """tanh(alpha * x) with scale and offset, instead of a norm. arXiv:2503.10622, section 4."""

    kind: Literal["dynamic tanh"]

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """Its learned tensors; alpha begins as .5."""
        alpha = Parameter("alpha", (1,), Constant(0.5), decay=False, dtype="full")
        return (alpha, *LayerNorm().parameters(d_model))


@dataclass(frozen=True)
class NoNorm:
    """The stream as it is, in the place of a norm."""

    kind: Literal["none"]

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """None."""
        del d_model
        return ()


# The required `kind` tells records of the others from those of the first, which have none.
AnyFeedForward = FeedForward | SwiGLU | ReLU2 | Bilinear
AnyNorm = LayerNorm | RMSNorm | DynamicTanh | NoNorm

# The place of a part's norm: on its input, on the sum with the stream, on its output, or on both
# its input and its output.
NormPlace = Literal["input", "sum", "output", "both"]
# How a part joins the stream: one after the other, all on the same input, or in the stream's place.
Residual = Literal["sequential", "parallel", "none"]
