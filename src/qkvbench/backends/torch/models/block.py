"""One layer of a model: attention and feed-forward, each on the normed stream and added to it."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.cache.kv_cache import Cache, LayerCache
from qkvbench.backends.torch.cache.page_table import PageTable
from qkvbench.backends.torch.models.parts import feed_forward, norm
from qkvbench.cost import CacheFormat
from qkvbench.model import Block as BlockSpec
from qkvbench.model import LayerPlans
from qkvbench.variant import Mask

Stream = Float[Tensor, "batch time d_model"]


class Source(NamedTuple):
    """The input of cross-attention: a stream, and the length of each item without padding."""

    stream: Float[Tensor, "batch source_time d_model"]
    lengths: Int[Tensor, " batch"] | None


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on each addition.

    With cross-attention, x + cross(norm(x), source) comes between.
    """

    def __init__(self, spec: BlockSpec, plans: LayerPlans, d_model: int, *, dropout: float) -> None:
        """The block that `spec` describes, with attention by these plans."""
        super().__init__()
        self.dropout = dropout
        self.attention = None
        if plans.attention:
            self.attention_norm = norm(spec.norm, d_model)
            self.attention = Attention(plans.attention)
        self.cross = None
        if plans.cross:
            self.cross_norm = norm(spec.norm, d_model)
            self.cross = Attention(plans.cross)
        self.feed_forward = None
        if spec.feed_forward:
            self.feed_forward_norm = norm(spec.norm, d_model)
            self.feed_forward = feed_forward(spec.feed_forward, d_model)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        source: Source | None = None,
    ) -> Stream:
        """The stream after this layer, over a whole sequence; an empty cache is filled with it."""
        if self.attention:
            x = x + self._drop(self.attention(self.attention_norm(x), layer, lengths))
        if self.cross and layer and layer.cross:
            x = x + self.cross.attend_to_cached_source(self.cross_norm(x), layer.cross)
        elif self.cross and source:
            across = self.cross(self.cross_norm(x), None, source.lengths, source.stream)
            x = x + self._drop(across)
        return self._add_feed_forward(x)

    def step(self, x: Stream, cache: Cache, layer: LayerCache) -> Stream:
        """The stream after this layer, for one new token of each sequence."""
        if self.attention:
            x = x + self.attention.step(self.attention_norm(x), cache, layer)
        if self.cross and layer.cross:
            x = x + self.cross.attend_to_cached_source(self.cross_norm(x), layer.cross)
        return self._add_feed_forward(x)

    def new_cache(self, tables: Mapping[Mask, PageTable], format: CacheFormat) -> LayerCache:
        """An empty cache for this layer, by the page table of its mask."""
        if self.attention is None:
            return LayerCache({}, {}, torch.float32)
        return self.attention.new_cache(tables[self.attention.plan.mask], format)

    def _add_feed_forward(self, x: Stream) -> Stream:
        if self.feed_forward:
            x = x + self._drop(self.feed_forward(self.feed_forward_norm(x)))
        return x

    def _drop(self, x: Stream) -> Stream:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def recompute(network: nn.Module) -> None:
    """Activation checkpointing: every block saves its input only, and recomputes the rest.

    The same dropout is drawn again, so results are the same to the bit.
    """
    for block in network.modules():
        if isinstance(block, Block):
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=block.dropout > 0,
            )
