"""Feed-forwards and norms of torch, by their specs."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.kernels.linear import Linear
from qkvbench.model.parts import (
    AnyFeedForward,
    AnyNorm,
    FeedForward,
    LayerNorm,
    ReLU2,
    RMSNorm,
    SwiGLU,
)

Stream = Float[Tensor, "batch time d_model"]


class TwoMatrices(nn.Module):
    """Two matrices with an activation between."""

    def __init__(self, d_model: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.activation = activation
        self.up = Linear(d_model, width)
        self.down = Linear(width, d_model)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(self.activation(self.up(x)))


class Gated(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, d_model: int, width: int) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.gate = Linear(d_model, width, bias=False)
        self.up = Linear(d_model, width, bias=False)
        self.down = Linear(width, d_model, bias=False)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def feed_forward(spec: AnyFeedForward, d_model: int) -> nn.Module:
    """The feed-forward that `spec` describes."""
    match spec:
        case FeedForward(width):
            return TwoMatrices(d_model, width, functional.gelu)
        case ReLU2(width):
            return TwoMatrices(d_model, width, lambda x: functional.relu(x).square())
        case SwiGLU(width):
            return Gated(d_model, width)


def norm(spec: AnyNorm, d_model: int) -> nn.Module:
    """The norm that `spec` describes."""
    match spec:
        case LayerNorm(eps):
            return nn.LayerNorm(d_model, eps)
        case RMSNorm(eps=eps):
            return nn.RMSNorm(d_model, eps)
