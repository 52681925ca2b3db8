"""Feed-forwards and norms of torch, by their specs."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.kernels.linear import Linear
from qkvbench.model.parts import (
    AnyFeedForward,
    AnyNorm,
    Bilinear,
    DynamicTanh,
    FeedForward,
    LayerNorm,
    NoNorm,
    ReLU2,
    RMSNorm,
    SwiGLU,
)

Stream = Float[Tensor, "batch time d_model"]
Positions = Float[Tensor, "*positions d_model"]


class TwoMatrices(nn.Module):
    """Two matrices with an activation between."""

    def __init__(
        self, d_model: int, width: int, activation: Callable[[Tensor], Tensor], *, biases: bool
    ) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.activation = activation
        self.up = Linear(d_model, width, biases)
        self.down = Linear(width, d_model, biases)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(self.activation(self.up(x)))


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)), without biases."""

    def __init__(self, d_model: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.activation = activation
        self.gate = Linear(d_model, width, bias=False)
        self.up = Linear(d_model, width, bias=False)
        self.down = Linear(width, d_model, bias=False)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class RootMeanSquare(nn.RMSNorm):
    """RMSNorm, under autocast in fp32 or better, which torch does for LayerNorm alone."""

    def forward(self, x: Positions) -> Positions:
        """The same map at each position."""
        return super().forward(_wide(x) if torch.is_autocast_enabled(x.device.type) else x)


class Tanh(nn.Module):
    """weight * tanh(alpha * x) + bias, computed in fp32 or better as norms are."""

    def __init__(self, d_model: int) -> None:
        """A dynamic tanh."""
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Positions) -> Positions:
        """The same map at each position."""
        made = self.weight * torch.tanh(self.alpha * _wide(x)) + self.bias
        return made if torch.is_autocast_enabled(x.device.type) else made.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def feed_forward(spec: AnyFeedForward, d_model: int, *, biases: bool = True) -> nn.Module:
    """The feed-forward that `spec` describes; those that have `biases` have them or not."""
    match spec:
        case FeedForward(width):
            return TwoMatrices(d_model, width, functional.gelu, biases=biases)
        case ReLU2(width):
            return TwoMatrices(d_model, width, _squared_relu, biases=biases)
        case SwiGLU(width):
            return Gated(d_model, width, functional.silu)
        case Bilinear(width):
            return Gated(d_model, width, lambda x: x)


def _squared_relu(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def norm(spec: AnyNorm, d_model: int) -> nn.Module:
    """The norm that `spec` describes."""
    match spec:
        case LayerNorm(eps):
            return nn.LayerNorm(d_model, eps)
        case RMSNorm(eps=eps, scale=scale):
            return RootMeanSquare(d_model, eps, elementwise_affine=scale)
        case DynamicTanh():
            return Tanh(d_model)
        case NoNorm():
            return nn.Identity()
