"""The causal stack: tokens to the logits of the next one, whole or step by step over a cache.

An encoder-decoder is a causal stack that also reads a source.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from qkvbench.backends.torch.cache.kv_cache import (
    Cache,
    LayerCache,
    MadeFor,
    free_bytes_of,
    new_table,
)
from qkvbench.backends.torch.cache.page_table import Reserved, Storage
from qkvbench.backends.torch.cache.quantize import cache_format
from qkvbench.backends.torch.kernels.linear import product
from qkvbench.backends.torch.models.block import Block, Blocks, Source
from qkvbench.backends.torch.models.embedding import Embedding
from qkvbench.backends.torch.models.parts import norm
from qkvbench.backends.torch.models.tower import Tower
from qkvbench.cost import CACHE_FORMATS, CacheDtype, cache_bytes
from qkvbench.cost.units import bytes_text
from qkvbench.model import Decoder as DecoderSpec
from qkvbench.model import EncoderDecoder as EncoderDecoderSpec
from qkvbench.model import Model

Tokenized = Int[Tensor, "batch time"]
Counts = Int[Tensor, " batch"]


class Decoder(nn.Module):
    """A decoder, and the tower of its source if it has one."""

    def __init__(
        self, model: Model, spec: DecoderSpec | EncoderDecoderSpec, dropout: float = 0.0
    ) -> None:
        """An untrained decoder; `start` gives it its initial values."""
        super().__init__()
        self.model = model
        self.longest = model.longest
        size = model.geometry
        self.embedding = Embedding(model.inputs, model.position, size.d_model)
        self.blocks = Blocks(model.towers[0].blocks, model.layers[0], size.d_model, dropout)
        self.norm = norm(model.towers[0].final_norm, size.d_model)
        self.output = None
        if not spec.tied:
            self.output = nn.Linear(model.geometry.d_model, spec.vocabulary, bias=False)
        self.source = None
        if model.second:
            self.source = Tower(model.towers[1], model.layers[1], size.d_model, dropout)

    def forward(
        self,
        tokens: Tokenized,
        padding: Counts | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Counts | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits at every position; the source, if there is one, is `second`.

        `padding` counts the tokens to ignore on the left of each row; the result at
        their positions is arbitrary.
        """
        source = (None, second, second_lengths)
        if padding is None:
            return self.head(self.hidden(tokens, *source))
        return _shifted(self.head(self.hidden(_shifted(tokens, padding), *source)), -padding)

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return self.blocks.layers()

    def hidden(
        self,
        tokens: Tokenized,
        lengths: Counts | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Counts | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """The normed stream after the last block; the source, if there is one, is `second`.

        What follows the first `lengths` tokens of a row is hidden by causality already.
        """
        source = self._read(second, second_lengths)
        return self.norm(self.blocks(self.embedding(tokens), source=source))

    def head(self, x: Float[Tensor, "*places d_model"]) -> Float[Tensor, "*places vocabulary"]:
        """Logits of the next token."""
        return product(x, self.matrix)

    @property
    def matrix(self) -> Float[Tensor, "vocabulary d_model"]:
        """The output matrix; the token table if they are tied."""
        return self.embedding.table if self.output is None else self.output.weight

    @property
    def classes(self) -> int:
        """The number of classes of a prediction."""
        return len(self.matrix)

    def new_cache(
        self,
        batch: int,
        capacity: int,
        storage: Storage = Reserved(),
        rows: CacheDtype | None = None,
    ) -> Cache:
        """An empty cache for `batch` sequences of at most `capacity` tokens.

        `rows` is the dtype of cached rows; None is that of the weights. MemoryError if memory that
        is reserved at once does not fit, before any is.
        """
        if self.longest is not None and capacity > self.longest:
            raise ValueError(
                f"This model reads at most {self.longest} tokens, fewer than {capacity}."
            )
        like = self.embedding.table
        format = CACHE_FORMATS[rows] if rows else cache_format(like.dtype)
        if isinstance(storage, Reserved):
            needed = cache_bytes(self.model, capacity, batch, format, storage.page)
            free = free_bytes_of(like.device)
            if needed > free:
                raise MemoryError(
                    f"A cache for {batch} sequences of {capacity} tokens takes "
                    f"{bytes_text(needed)}, and {bytes_text(free)} are free. Make it for fewer "
                    'sequences or tokens, or in smaller rows, such as rows="int8".'
                )
        masks = dict.fromkeys(plan.mask for plan in self.model.plans if plan)
        tables = {
            mask: new_table(batch, capacity, storage, like.device, mask.sinks) for mask in masks
        }
        layers: list[LayerCache] = []
        for block in self.layers():
            layers.append(block.new_cache(tables, format, layers))
        return Cache(layers, tables, batch, capacity, format, self.made_for)

    @property
    def made_for(self) -> MadeFor:
        """The properties that a cache must share with this network."""
        like = self.embedding.table
        return MadeFor(self.model.plans, like.dtype, like.device)

    def accept(self, cache: Cache) -> None:
        """Refuse a cache of another model; ValueError says how it differs."""
        difference = self.made_for.difference(cache.made_for)
        if difference:
            raise ValueError(
                f"This cache was made for a model with {difference}. Make one with this model's "
                "new_cache."
            )

    def read_source(
        self,
        second: Num[Tensor, "items second_time *second_features"],
        second_lengths: Int[Tensor, " items"] | None,
        cache: Cache,
    ) -> None:
        """Cache the sources of its sequences, before anything else.

        There may be several sequences for each of the `items`, next to each other.
        """
        source = self._read(second, second_lengths)
        if source is None:
            raise ValueError("This decoder reads no source.")
        own = cache_format(self.embedding.table.dtype)
        format = None if cache.format == own else cache.format
        for block, layer in zip(self.layers(), cache.layers, strict=True):
            if block.cross:
                layer.cross = block.cross.cache_source(source.stream, source.lengths, format)

    def _read(self, second: Tensor | None, lengths: Counts | None) -> Source | None:
        if self.source is None:
            return None
        if second is None:
            raise ValueError("This decoder reads a source, and none was given.")
        return Source(self.source(second, lengths), lengths)

    def prefill(
        self, tokens: Tokenized, cache: Cache, padding: Counts | None = None
    ) -> Float[Tensor, "batch vocabulary"]:
        """Read whole prompts into an empty cache; the logits after the last token of each."""
        if cache.longest:
            raise ValueError(f"A prompt goes into an empty cache; this one holds {cache.longest}.")
        self.accept(cache)
        cache.reserve(tokens.shape[1])
        if padding is not None:
            # Shifted left, padding comes after the last token, and causality hides it:
            # no mask, and a slot of the cache is a position.
            tokens = _shifted(tokens, padding)
        time = tokens.shape[1]
        cache.begin(time, None if padding is None else time - padding)
        x = self.blocks(self.embedding(tokens), cache.layers)
        last = -1 if padding is None else time - padding - 1
        return self.head(self.norm(x[torch.arange(len(x), device=x.device), last]))

    def step(self, tokens: Counts, cache: Cache) -> Float[Tensor, "batch vocabulary"]:
        """Read one token of each sequence; the logits after it."""
        self.accept(cache)
        cache.open()
        x = self.embedding.at(tokens, cache.longest, cache.lengths)
        x = self.blocks.step(x, cache)
        cache.advance()
        return self.head(self.norm(x[:, 0]))


def _shifted(rows: Tensor, counts: Counts) -> Tensor:
    """Each row moved left by its count, around the end."""
    time = rows.shape[1]
    index = (torch.arange(time, device=rows.device) + counts[:, None]) % time
    return rows[torch.arange(len(rows), device=rows.device)[:, None], index]
