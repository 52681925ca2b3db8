"""Feed-forwards and norms of torch, by their specs."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.kernels.linear import Linear
from qkvbench.model import AnyFeedForward, AnyNorm, FeedForward, LayerNorm

Stream = Float[Tensor, "batch time d_model"]


class Gelu(nn.Module):
    """Two matrices with a GELU between."""

    def __init__(self, d_model: int, width: int) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.up = Linear(d_model, width)
        self.down = Linear(width, d_model)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(functional.gelu(self.up(x)))


def feed_forward(spec: AnyFeedForward, d_model: int) -> nn.Module:
    """The feed-forward that `spec` describes."""
    match spec:
        case FeedForward(width):
            return Gelu(d_model, width)


def norm(spec: AnyNorm, d_model: int) -> nn.Module:
    """The norm that `spec` describes."""
    match spec:
        case LayerNorm(eps):
            return nn.LayerNorm(d_model, eps)
