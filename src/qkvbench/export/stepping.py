"""A decoder as one function of tokens and cached tensors: what exported programs compute.

The same function reads a prompt (nothing is cached) and decodes (one new token). It runs the layers
of the torch backend absorbed, as their decoding does, over caches that grow by concatenation: what
a plan caches is an input and an output, so a tied K and V is one tensor of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.cache.kv_cache import LayerCache, free_bytes_of
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.grown_cache import (
    GrownCache,
    GrownRows,
    grown_layers,
    head_maps,
)
from qkvbench.cost.units import bytes_text
from qkvbench.variant import Plan

# Rows of each table beyond the context: torch traces every size as one of at least two, and takes a
# part of a table that could be shorter by two for one that must be.
SPARE = 2


@dataclass(frozen=True)
class CachedInput:
    """One cached tensor of a layer: (batch, heads, tokens, width)."""

    layer: int
    name: str
    heads: int
    width: int

    @property
    def past(self) -> str:
        """Its name as an input."""
        return f"past.{self.layer}.{self.name}"

    @property
    def present(self) -> str:
        """Its name as an output, with the new tokens."""
        return f"present.{self.layer}.{self.name}"


def cached_inputs(plans: Sequence[Plan | None]) -> list[CachedInput]:
    """The cached tensors of all layers, in the order of inputs and outputs."""
    return [
        CachedInput(number, tensor.name, tensor.heads, tensor.width)
        for number, plan in enumerate(plans)
        if plan
        for tensor in plan.cached
    ]


class Stepping(nn.Module):
    """``(tokens, *past) -> (logits, *present)`` for texts of `context` tokens at most.

    tokens (batch, new), int64; a past tensor (batch, heads, cached, width) -> logits of the last
    token (batch, vocabulary); a present tensor (batch, heads, cached + new, width).
    """

    def __init__(self, network: Decoder, context: int) -> None:
        """The function of this network; ValueError if it cannot be exported."""
        super().__init__()
        model = network.model
        if network.source is not None:
            raise ValueError(
                f"{model.name} reads a source; only a decoder of one input is exported."
            )
        if network.longest is not None and context > network.longest:
            raise ValueError(
                f"{model.name} reads at most {network.longest} tokens, fewer than {context}; "
                f"write --context {network.longest} or less."
            )
        if any(plan and plan.linear for plan in model.plans):
            raise ValueError(
                f"{model.name} keeps a state of its text, and programs have rows of tokens as "
                "their inputs: export a decoder whose layers make a softmax."
            )
        self.network = network.eval()
        self.context = context
        self.inputs = cached_inputs(model.plans)
        if not self.inputs:
            raise ValueError(
                f"{model.label} caches nothing, and programs read new tokens after those that are "
                "cached: export a decoder with attention."
            )
        # Rotations are made here: they come from solving equations, which ONNX cannot.
        with torch.no_grad():
            self._head_maps = head_maps(network.layers())
        self._fill_tables()

    def forward(self, tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Read the new tokens after those that are cached."""
        network, count = self.network, tokens.shape[1]
        length = past[0].shape[2]
        cache = GrownCache(self._layers(past), length, count)
        x = functional.embedding(tokens, network.embedding.table)
        added = network.embedding.position_embeddings(self.context, x)
        if added is not None:
            missing = max(0, self.context + SPARE - len(added))
            # No learned position is there, so nothing that is read there looks like a result.
            added = functional.pad(added, (0, 0, 0, missing), value=torch.nan)
            x = x + added[length : length + count]
        x = network.blocks.step(x, cache)
        logits = network.head(network.norm(x[:, -1]))
        return logits, *(_rows(cache.layers[each.layer], each.name) for each in self.inputs)

    def about(self) -> dict[str, object]:
        """The names and sizes that a program needs to run the file."""
        return {
            "variant": self.network.model.variant,
            "context": self.context,
            "vocabulary": len(self.network.matrix),
            "cached": [
                {
                    "past": each.past,
                    "present": each.present,
                    "heads": each.heads,
                    "width": each.width,
                }
                for each in self.inputs
            ],
        }

    def empty(self, batch: int) -> list[Tensor]:
        """Past tensors without any token."""
        like = self.network.embedding.table
        return [like.new_zeros(batch, each.heads, 0, each.width) for each in self.inputs]

    def _layers(self, past: Sequence[Tensor]) -> list[LayerCache]:
        """The caches of all layers over the past tensors."""
        rows: dict[int, dict[str, GrownRows]] = {}
        for each, tensor in zip(self.inputs, past, strict=True):
            rows.setdefault(each.layer, {})[each.name] = GrownRows(tensor)
        return grown_layers(self.network.layers(), rows, self._head_maps)

    def _fill_tables(self) -> None:
        """Make the tables of all positions now: a graph cannot make them longer.

        MemoryError if the rows of so many tokens do not fit.
        """
        like = self.network.embedding.table
        numbers = sum(each.heads * each.width for each in self.inputs)
        # Past rows, and those with one more.
        needed = 2 * self.context * numbers * like.element_size()
        if needed > (free := free_bytes_of(like.device)):
            raise MemoryError(
                f"A program for texts of {self.context:,} tokens is made by one step over "
                f"{bytes_text(needed)} of cached rows, and {bytes_text(free)} are free: write a "
                "smaller --context."
            )
        with torch.no_grad():
            tokens = torch.zeros(1, 1, dtype=torch.int64)
            self(
                tokens,
                *(
                    each.new_zeros(*each.shape[:2], self.context - 1 + SPARE, each.shape[3])
                    for each in self.empty(1)
                ),
            )


def _rows(layer: LayerCache, name: str) -> Tensor:
    found = layer.rows[name]
    assert isinstance(found, GrownRows)
    return found.rows
