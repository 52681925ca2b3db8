"""A cache whose rows are plain tensors that grow by concatenation, for whole tokens at a time.

Programs for elsewhere have such caches as inputs and outputs, and scores in few bits read theirs
from them: both run the decoding step of this backend as it is.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qkvbench.backends.torch.attention.ops import Heads
from qkvbench.backends.torch.cache.kv_cache import Cache, LayerCache, Maps
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.models.block import Block
from qkvbench.variant import Mask


class GrownRows(PagedTensor):
    """The rows of one cached tensor as one tensor, to which new rows are appended."""

    def __init__(self, rows: Heads) -> None:
        """These rows, the first ones of each sequence."""
        self.rows = rows
        self.heads = rows.shape[1]

    def write(self, new: Heads) -> None:
        """Append rows to each sequence."""
        self.rows = torch.cat([self.rows, new], dim=2)

    def tiles(
        self, first: int, end: int, kind: torch.dtype, *, most: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """All rows as one tile: a mask hides what is not seen."""
        yield 0, self.rows


class GrownCache(Cache):
    """The part of a cache that a step asks for: its tokens, and which slots are read."""

    def __init__(self, layers: list[LayerCache], longest: int, count: int) -> None:
        """A cache of `longest` tokens that is open for `count` more."""
        self.layers = layers
        self.longest = longest
        self.count = count
        self.lengths = None

    def intervals(self, mask: Mask) -> list[tuple[int, int]]:
        """All slots."""
        return [(0, self.longest + self.count)]


def grown_layers(
    blocks: Sequence[Block], rows: Mapping[int, Mapping[str, GrownRows]], maps: Sequence[Maps]
) -> list[LayerCache]:
    """The caches of all layers over `rows`; a layer that reads one below has that one's.

    `maps` are the learned maps of each layer's heads.
    """
    layers: list[LayerCache] = []
    for number, block in enumerate(blocks):
        if block.attention is None:
            layers.append(LayerCache({}, {}, torch.float32))
            continue
        layers.append(
            LayerCache(
                dict(rows.get(number, {})),
                maps[number],
                block.attention.like.dtype,
                vector=block.attention.vector,
                below=block.caches_below(layers),
            )
        )
    return layers


def head_maps(blocks: Sequence[Block]) -> list[Maps]:
    """The learned maps of each layer's heads."""
    return [block.attention.head_maps() if block.attention else {} for block in blocks]
