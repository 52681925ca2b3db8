"""One layer of a stack: attention and feed-forward, each on the normed stream and added to it."""

from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention import Attention
from qkvbench.backends.torch.cache import Cache, LayerCache
from qkvbench.model import Block as BlockSpec
from qkvbench.model import Learned, Model, NoPosition, Sinusoidal

Stream = Float[Tensor, "batch time d_model"]


class FeedForward(nn.Module):
    """Two matrices with a GELU between."""

    def __init__(self, d_model: int, width: int) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.up = nn.Linear(d_model, width)
        self.down = nn.Linear(width, d_model)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on both additions."""

    def __init__(self, spec: BlockSpec, model: Model, dropout: float) -> None:
        """The block that `spec` describes, in `model`."""
        super().__init__()
        size = model.geometry
        added = isinstance(model.position, Learned | Sinusoidal)
        self.dropout = dropout
        self.attention = None
        if spec.attention:
            self.attention_norm = nn.LayerNorm(size.d_model, spec.norm.eps)
            self.attention = Attention(
                spec.attention.variant,
                size.d_model,
                size.heads,
                kv_heads=size.kv_heads,
                head_dim=size.head_dim,
                position=NoPosition() if added else model.position,
                causal=model.causal,
            )
        self.feed_forward = None
        if spec.feed_forward:
            self.feed_forward_norm = nn.LayerNorm(size.d_model, spec.norm.eps)
            self.feed_forward = FeedForward(size.d_model, spec.feed_forward.width)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Stream:
        """The stream after this layer, over a whole sequence; an empty cache is filled with it."""
        if self.attention:
            x = x + self._dropped(self.attention(self.attention_norm(x), layer, lengths))
        return self._fed_forward(x)

    def step(self, x: Stream, cache: Cache, layer: LayerCache | None) -> Stream:
        """The stream after this layer, for one new token of each sequence."""
        if self.attention and layer:
            x = x + self.attention.step(self.attention_norm(x), cache, layer)
        return self._fed_forward(x)

    def _fed_forward(self, x: Stream) -> Stream:
        if self.feed_forward:
            x = x + self._dropped(self.feed_forward(self.feed_forward_norm(x)))
        return x

    def _dropped(self, x: Stream) -> Stream:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def recompute(network: nn.Module) -> None:
    """Have every block keep its input only: the backward pass makes the rest again.

    It draws the same dropout again, and all else is as before, to the bit.
    """
    for block in network.modules():
        if isinstance(block, Block):
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=block.dropout > 0,
            )
