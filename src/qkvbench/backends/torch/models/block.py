"""One layer of a model: attention and feed-forward, each on the normed stream and added to it."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention.layer import Attention, Heads
from qkvbench.backends.torch.cache.kv_cache import Cache, LayerCache
from qkvbench.backends.torch.cache.page_table import PageTable
from qkvbench.backends.torch.models.parts import feed_forward, norm
from qkvbench.cost import CacheFormat
from qkvbench.model import Block as BlockSpec
from qkvbench.model import LayerPlans, LentRoles, lent_roles
from qkvbench.variant import ROLES, Derivation, Mask, Role, roots_below

Stream = Float[Tensor, "batch time d_model"]


class Source(NamedTuple):
    """The input of cross-attention: a stream, and the length of each item without padding."""

    stream: Float[Tensor, "batch source_time d_model"]
    lengths: Int[Tensor, " batch"] | None


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on each addition.

    With cross-attention, x + cross(norm(x), source) comes between. Its spec may place the norms
    and join the parts in another way.
    """

    def __init__(
        self,
        spec: BlockSpec,
        plans: LayerPlans,
        d_model: int,
        *,
        dropout: float,
        lends: LentRoles,
        shared: nn.Module | None = None,
    ) -> None:
        """The block that `spec` describes, with attention by these plans.

        `lends`: K and V if blocks above it read them. `shared` is the first block's feed-forward.
        """
        super().__init__()
        self.spec = spec
        self.dropout = dropout
        self.lends = lends
        self.lenders = plans.attention.lenders if plans.attention else ()
        self.row_lenders = plans.attention.row_lenders if plans.attention else ()
        # Norms first: the gradient's norm is a sum in this order, so another changes its last bits.
        self.attention = None
        if plans.attention:
            self._make_norms("attention", d_model, attends=True)
            self.attention = Attention(plans.attention)
        self.cross = None
        if plans.cross:
            self._make_norms("cross", d_model, attends=True)
            self.cross = Attention(plans.cross)
        self.feed_forward = None
        if spec.feed_forward:
            self._make_norms("feed_forward", d_model, attends=plans.attention is not None)
            if shared is None or not spec.shared_feed_forward:
                shared = feed_forward(spec.feed_forward, d_model, biases=spec.biases)
            self.feed_forward = shared

    def _make_norms(self, part: str, d_model: int, *, attends: bool) -> None:
        for name in self.spec.norms(part, attends=attends):
            self.add_module(name, norm(self.spec.norm, d_model))

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        source: Source | None = None,
        lent: Mapping[Derivation, Heads] = MappingProxyType({}),
    ) -> tuple[Stream, dict[Role, Heads]]:
        """The stream after this layer, over a whole sequence; an empty cache is filled with it.

        `lent` are the roots of layers below. The second result is what layers above read.
        """
        lends: dict[Role, Heads] = {}
        rows = x
        if self.attention:
            made = dict(lent)
            rows = self._normed("attention", x)
            x = self._add("attention", x, self.attention(rows, layer, lengths, made=made))
            if self.lends.whole:
                lends = self.attention.lent(self.lends.whole, made)
            # Q, K and V need no memory any more, unless they are read above.
            del made
        if self.cross and layer and layer.cross:
            x = self._add_cached_cross(self.cross, x, layer)
        elif self.cross and source:
            own = self._normed("cross", x)
            x = self._add("cross", x, self.cross(own, None, source.lengths, source.stream))
        return self._add_feed_forward(x, rows), lends

    def step(
        self, x: Stream, cache: Cache, layer: LayerCache, lent: Mapping[Derivation, Heads]
    ) -> tuple[Stream, dict[Role, Heads]]:
        """The stream after this layer, for one new token of each sequence.

        `lent` and the second result as in a whole pass, of the token alone.
        """
        lends: dict[Role, Heads] = {}
        rows = x
        if self.attention:
            made, step = dict(lent), self.lends.step
            rows = self._normed("attention", x)
            x = self._add("attention", x, self.attention.step(rows, cache, layer, made, step))
            lends = self.attention.lent(step, made)
        if self.cross and layer.cross:
            x = self._add_cached_cross(self.cross, x, layer)
        return self._add_feed_forward(x, rows), lends

    def new_cache(
        self,
        tables: Mapping[Mask, PageTable],
        format: CacheFormat,
        below: Sequence[LayerCache],
    ) -> LayerCache:
        """An empty cache for this layer, by the page table of its mask; `below` are the lower ones.

        A layer that reads K or V of one below has no rows of its own for it.
        """
        if self.attention is None:
            return LayerCache({}, {}, torch.float32)
        table = tables[self.attention.plan.mask]
        return self.attention.new_cache(table, format, self.caches_below(below))

    def caches_below(self, below: Sequence[LayerCache]) -> dict[Role, LayerCache]:
        """The caches of lower layers whose K or V it reads, of all that are `below` it."""
        if self.attention is None:
            return {}
        plan = self.attention.plan
        return {role: below[-layers] for role in ROLES if (layers := plan.layers_below(role))}

    def _add_cached_cross(self, cross: Attention, x: Stream, layer: LayerCache) -> Stream:
        if layer.cross is None:
            return x
        made = cross.attend_to_cached_source(self._normed("cross", x), layer.cross)
        return self._add("cross", x, made)

    def _add_feed_forward(self, x: Stream, rows: Stream) -> Stream:
        """`rows` is what attention read, which a parallel feed-forward reads, too."""
        if self.feed_forward is None:
            return x
        if self.spec.residual != "parallel" or self.attention is None:
            rows = self._normed("feed_forward", x)
        return self._add("feed_forward", x, self.feed_forward(rows))

    def _normed(self, part: str, x: Stream) -> Stream:
        """The input of a part."""
        return getattr(self, f"{part}_norm")(x) if self.spec.norm_place in ("input", "both") else x

    def _add(self, part: str, x: Stream, made: Stream) -> Stream:
        """The stream with what a part made."""
        if self.spec.norm_place in ("output", "both"):
            made = getattr(self, f"{part}_output_norm")(made)
        x = self._drop(made) if self.spec.residual == "none" else x + self._drop(made)
        return getattr(self, f"{part}_norm")(x) if self.spec.norm_place == "sum" else x

    def _drop(self, x: Stream) -> Stream:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class Blocks(nn.ModuleList):
    """The blocks of one input, first to last."""

    def __init__(
        self,
        specs: Sequence[BlockSpec],
        layers: tuple[LayerPlans, ...],
        d_model: int,
        dropout: float,
    ) -> None:
        """The blocks that `specs` describe, with attention by the plans of their layers."""
        super().__init__()
        for spec, plans, lends in zip(specs, layers, lent_roles(layers), strict=True):
            shared = self.layers()[0].feed_forward if len(self) else None
            self.append(Block(spec, plans, d_model, dropout=dropout, lends=lends, shared=shared))

    def forward(
        self,
        x: Stream,
        caches: Sequence[LayerCache] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        source: Source | None = None,
    ) -> Stream:
        """The stream after the last block, over a whole sequence; empty caches are filled with it.

        K and V that blocks above read are held until the end of the pass.
        """
        lent: dict[tuple[int, Role], Heads] = {}
        for number, block in enumerate(self.layers()):
            layer = caches[number] if caches else None
            read = roots_below(block.lenders, number, lent)
            x, lends = block(x, layer, lengths, source, read)
            lent |= {(number, role): rows for role, rows in lends.items()}
        return x

    def step(self, x: Stream, cache: Cache) -> Stream:
        """The stream after the last block, for new tokens over a cache that is open for them."""
        lent: dict[tuple[int, Role], Heads] = {}
        for number, (block, layer) in enumerate(zip(self.layers(), cache.layers, strict=True)):
            x, lends = block.step(x, cache, layer, roots_below(block.row_lenders, number, lent))
            lent |= {(number, role): rows for role, rows in lends.items()}
        return x

    def layers(self) -> list[Block]:
        """The blocks, as what they are."""
        return [block for block in self if isinstance(block, Block)]


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
