"""The attention function of slim models: it reads a slim cache without materializing K and V.

In place of the tensor that it does not keep, a slim cache passes a zero-memory placeholder to the
model's layer. The attention function registered here finds the reader behind the placeholder; any
other reader gets NaNs. Layers without a placeholder use torch's SDPA.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    sdpa_attention_forward,
)
from transformers.masking_utils import sdpa_mask

from qkvbench.hub.growing_tensor import GrowingTensor, Heads
from qkvbench.hub.unmade import MAX_QUERIES, READER

# The ``attn_implementation`` under which `attention_forward` is registered.
IMPLEMENTATION = "qkvbench_slim"
# Rows that are recomputed at a time, which bounds the temporary copy.
TILE = 256
# Rows of the new tokens whose recomputed K and V are compared with the layer's own.
CHECKED_ROWS = 2

Queries = Float[Tensor, "_batch _query_heads _queries _width"]
Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]


class Recipe(Protocol):
    """How one layer makes K or V from what is cached."""

    @property
    def layer(self) -> int:
        """The number of the layer."""
        ...

    @property
    def tolerance(self) -> float:
        """The largest relative error of a recomputed tensor."""
        ...


class Store(Protocol):
    """The cached tensors of one layer, from which K and V can be made."""

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        ...

    def append(self, key: Heads, value: Heads, position_ids: Tensor | None) -> None:
        """Cache the rows of new tokens."""
        ...

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        ...


class Reader(Protocol):
    """Attention over the cached tensors of one layer without K and V."""

    def placeholders(self) -> tuple[Heads, Heads]:
        """K and V for the model's layer, a placeholder for what is not cached."""
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


def uses_readers(config: Any) -> bool:
    """Whether the attention implementation of this config is the one that is registered here."""
    return config._attn_implementation == IMPLEMENTATION


@torch.no_grad()
def check_rows(
    recipe: Recipe, states: tuple[Heads, Heads], made: Callable[[], tuple[Heads, Heads]]
) -> None:
    """Refuse a layer whose K and V are not those that the cache makes; ValueError."""
    if states[0].is_meta:
        return
    for name, expected, rows in zip(("K", "V"), states, made(), strict=True):
        error = float((rows - expected).norm() / expected.norm().clamp_min(1e-30))
        # Low precision rounds the cached tensor, so one step of the dtype is allowed.
        tolerance = max(recipe.tolerance, torch.finfo(rows.dtype).eps)
        if error > tolerance:
            raise ValueError(
                f"In layer {recipe.layer} {name} made from the cached tensor is off by "
                f"{error:.2g} of its size; the tolerance is {tolerance:g}.\n"
                "If weights changed after slim, call slim(model) again. With adapters or hooks "
                "on the projections, use transformers' own cache."
            )


def placeholder(rows: Heads, reader: Reader) -> Heads:
    """A NaN tensor of the shape of `rows` that takes no memory and refers to `reader`."""
    nan = rows.new_full((), torch.nan).expand(rows.shape)
    setattr(nan, READER, reader)
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
    reader: Reader | None = getattr(key, READER, None) or getattr(value, READER, None)
    if attention_mask is None and 1 < queries < slots and getattr(module, "is_causal", True):
        # Without a mask the queries are the last tokens; SDPA would take them for the first.
        attention_mask = _causal_mask(queries, slots, query.device)
    if reader is not None and queries <= MAX_QUERIES:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = attention_mask
        if kwargs.get("position_bias") is not None:
            mask = create_position_bias_mask(
                kwargs["position_bias"], mask, is_causal=False, query=query, key=query
            )
        attn_output = reader.attend(query, mask, scale)
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
