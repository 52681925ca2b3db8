"""The attention function of slim models: it reads a slim cache without materializing K and V.

In place of the tensor that it does not keep, a slim cache passes a zero-memory placeholder to the
model's layer. The attention function registered here finds the reader behind the placeholder; any
other reader gets NaNs. Layers without a placeholder use torch's SDPA.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qkvbench.hub.growing_tensor import GrowingTensor, Heads

# The ``attn_implementation`` under which `attention_forward` is registered.
IMPLEMENTATION = "qkvbench_slim"
# Rows that are recomputed at a time, which bounds the temporary copy.
TILE = 256
# With more new tokens at once (a prompt) the missing tensor is materialized: scores of every
# query with every cached row would take more memory.
MAX_TILED_QUERIES = 32

_READER = "_qkvbench_reader"

Queries = Float[Tensor, "_batch _query_heads _queries _width"]
Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]


class Reader(Protocol):
    """The cached tensors of one layer, and attention over them."""

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        ...

    def append(self, key: Heads, value: Heads, position_ids: Tensor | None) -> None:
        """Cache the rows of new tokens."""
        ...

    def placeholders(self) -> tuple[Heads, Heads]:
        """K and V for the model's layer, a placeholder for the one that is not cached."""
        ...

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        ...

    def attend(self, query: Queries, mask: Mask | None, scaling: float) -> Queries:
        """softmax(q·k·scaling + mask)·v; a boolean mask is True where attention is allowed."""
        ...


def register_attention() -> None:
    """Register the implementation and its mask, without which transformers passes no mask."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def placeholder(rows: Heads, reader: Reader) -> Heads:
    """A NaN tensor of the shape of `rows` that takes no memory and refers to `reader`."""
    nan = rows.new_full((), torch.nan).expand(rows.shape)
    setattr(nan, _READER, reader)
    return nan


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention output (batch, queries, heads, width), without attention weights."""
    queries, slots = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < queries < slots and getattr(module, "is_causal", True):
        # Without a mask the queries are the last tokens; SDPA would take them for the first.
        attention_mask = _causal_mask(queries, slots, query.device)
    reader: Reader | None = getattr(key, _READER, None) or getattr(value, _READER, None)
    if reader is not None and queries <= MAX_TILED_QUERIES:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attn_output = reader.attend(query, attention_mask, scale)
        return attn_output.transpose(1, 2).contiguous(), None
    if reader is not None:
        key, value = reader.materialize()
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def attention_weights(scores: Tensor, mask: Mask | None) -> Tensor:
    """The masked softmax over the last axis, in fp32 or better."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        # The lowest number and not -inf, because a padding token may attend to nothing.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return (scores + mask).softmax(-1)


def tiles(length: int) -> Iterator[slice]:
    """The slices of so many rows, in order."""
    for first in range(0, length, TILE):
        yield slice(first, min(first + TILE, length))


def _causal_mask(
    queries: int, slots: int, device: torch.device
) -> Bool[Tensor, "one one queries slots"]:
    """The causal mask of the last `queries` tokens."""
    mask = torch.ones(queries, slots, dtype=torch.bool, device=device)
    return mask.tril(slots - queries)[None, None]
