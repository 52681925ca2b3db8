"""One layer of a stack: attention and feed-forward, each on the normed stream and added to it."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.cache.kv_cache import Cache, Keep, LayerCache
from qkvbench.backends.torch.cache.page_table import PageTable
from qkvbench.backends.torch.kernels.linear import Linear
from qkvbench.cost import CacheFormat
from qkvbench.model import Block as BlockSpec
from qkvbench.model import Learned, NoPosition, Position, Sinusoidal
from qkvbench.variant import Geometry

Stream = Float[Tensor, "batch time d_model"]


class Source(NamedTuple):
    """What is attended to across: a stream, and how much of each of its items is read."""

    stream: Float[Tensor, "batch source_time d_model"]
    lengths: Int[Tensor, " batch"] | None


class FeedForward(nn.Module):
    """Two matrices with a GELU between."""

    def __init__(self, d_model: int, width: int) -> None:
        """A feed-forward with `width` hidden units."""
        super().__init__()
        self.up = Linear(d_model, width)
        self.down = Linear(width, d_model)

    def forward(self, x: Stream) -> Stream:
        """The same map at each position."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on each addition.

    Where it reads a source, x + cross(norm(x), source) comes between.
    """

    def __init__(
        self,
        spec: BlockSpec,
        geometry: Geometry,
        position: Position,
        *,
        dropout: float,
        causal: bool,
    ) -> None:
        """The block that `spec` describes."""
        super().__init__()
        layer = partial(
            Attention,
            d_model=geometry.d_model,
            heads=geometry.heads,
            kv_heads=geometry.kv_heads,
            head_dim=geometry.head_dim,
        )
        added = isinstance(position, Learned | Sinusoidal)
        self.dropout = dropout
        self.attention = None
        if spec.attention:
            self.attention_norm = nn.LayerNorm(geometry.d_model, spec.norm.eps)
            self.attention = layer(
                spec.attention.variant,
                position=NoPosition() if added else position,
                causal=causal,
                window=spec.attention.window,
            )
        self.cross = None
        if spec.cross:
            self.cross_norm = nn.LayerNorm(geometry.d_model, spec.norm.eps)
            self.cross = layer(spec.cross.variant, is_cross=True)
        self.feed_forward = None
        if spec.feed_forward:
            self.feed_forward_norm = nn.LayerNorm(geometry.d_model, spec.norm.eps)
            self.feed_forward = FeedForward(geometry.d_model, spec.feed_forward.width)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        source: Source | None = None,
    ) -> Stream:
        """The stream after this layer, over a whole sequence; an empty cache is filled with it."""
        if self.attention:
            x = x + self._dropped(self.attention(self.attention_norm(x), layer, lengths))
        if self.cross and layer and layer.cross:
            x = x + self.cross.attend_to_cached_source(self.cross_norm(x), layer.cross)
        elif self.cross and source:
            across = self.cross(self.cross_norm(x), None, source.lengths, source.stream)
            x = x + self._dropped(across)
        return self._fed_forward(x)

    def step(self, x: Stream, cache: Cache, layer: LayerCache) -> Stream:
        """The stream after this layer, for one new token of each sequence."""
        if self.attention:
            x = x + self.attention.step(self.attention_norm(x), cache, layer)
        if self.cross and layer.cross:
            x = x + self.cross.attend_to_cached_source(self.cross_norm(x), layer.cross)
        return self._fed_forward(x)

    def new_cache(
        self, tables: Mapping[int | None, PageTable], kind: CacheFormat, keep: Keep
    ) -> LayerCache:
        """An empty cache for this layer, by the table of its window, in rows of type `kind`."""
        if self.attention is None:
            return LayerCache({}, {}, torch.float32)
        return self.attention.new_cache(tables[self.attention.scores.window], kind, keep)

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
