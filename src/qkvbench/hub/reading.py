"""Attention for transformers over what a slim cache keeps, read without making it whole.

A slim cache hands a *stand-in* to the model's layer for the tensor that it does not keep. The
attention function that is registered here finds the reader behind it; all other attention goes on
to torch's own. A stand-in is NaN wherever it is looked at, so that whatever else reads it cannot
go unnoticed.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qkvbench.hub.rows import Heads

# The attention implementation's name in a configuration.
NAME = "qkvbench_slim"
# Rows that are made at a time: the copy stays this long, however long the cache is.
TILE = 256
# More new tokens than this at once are a prompt: what is missing is then made whole, once for all
# of them, since each would otherwise have scores with every row in memory.
QUERIES = 32

_BEHIND = "_qkvbench_reader"

Queries = Float[Tensor, "_batch _query_heads _queries _width"]
Allowed = Bool[Tensor, "..."] | Float[Tensor, "..."]


class Reader(Protocol):
    """Attends over kept rows for one layer."""

    def whole(self) -> tuple[Heads, Heads]:
        """K and V, the one that is not kept made for now."""
        ...

    def attend(self, query: Queries, allowed: Allowed | None, scaling: float) -> Queries:
        """softmax(q·k·scaling)·v, a tile at a time; ``allowed`` is a mask, or is added."""
        ...


def register() -> None:
    """Make the implementation known, with its masks: without those transformers gives it none."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def stand_in(rows: Heads, reader: Reader) -> Heads:
    """A tensor without memory of its own in the shape of `rows`, behind which `reader` is."""
    nothing = rows.new_full((), torch.nan).expand(rows.shape)
    setattr(nothing, _BEHIND, reader)
    return nothing


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: (batch, queries, heads, width), and no weights."""
    queries, slots = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < queries < slots and getattr(module, "is_causal", True):
        # Without a mask the queries are the last of the slots; torch takes them for the first.
        attention_mask = _last(queries, slots, query.device)
    reader = getattr(key, _BEHIND, None) or getattr(value, _BEHIND, None)
    if reader is not None and queries <= QUERIES:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        seen = reader.attend(query, attention_mask, scale)
        return seen.transpose(1, 2).contiguous(), None
    if reader is not None:
        key, value = reader.whole()
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
    )


def shares(products: Tensor, allowed: Allowed | None) -> Tensor:
    """The softmax over the last axis, in fp32 or better, where it is allowed to look."""
    exact = products.to(torch.promote_types(products.dtype, torch.float32))
    if allowed is None:
        return exact.softmax(-1)
    if allowed.dtype == torch.bool:
        # The lowest number and not -inf: a token of the padding sees nothing at all.
        return exact.masked_fill(~allowed, torch.finfo(exact.dtype).min).softmax(-1)
    return (exact + allowed).softmax(-1)


def stretches(length: int) -> Iterator[slice]:
    """The tiles of so many rows, in order."""
    for first in range(0, length, TILE):
        yield slice(first, min(first + TILE, length))


def _last(queries: int, slots: int, device: torch.device) -> Bool[Tensor, "one one queries slots"]:
    """Which slots each of the last `queries` sees: those up to its own."""
    seen = torch.ones(queries, slots, dtype=torch.bool, device=device)
    return seen.tril(slots - queries)[None, None]
