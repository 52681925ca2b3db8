"""The cache of roots: for each layer the tensors that its plan keeps, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qkvbench.variant import Plan, Role

Maps = Mapping[Role, Float[Tensor, "heads head_dim head_dim"]]


@dataclass
class LayerCache:
    """One layer's pre-allocated rows, (batch, heads, capacity, head_dim) for each kept tensor.

    ``rotations`` are the layer's learned rotations, made once: weights stand still in decoding.
    ``cross`` are the rows of a source, which are all there before the first step; of those
    ``lengths`` says how many are read.
    """

    rows: dict[str, Float[Tensor, "batch _heads capacity head_dim"]]
    rotations: Maps
    lengths: Int[Tensor, " batch"] | None = None
    cross: "LayerCache | None" = None


class Cache:
    """What a decoder remembers of `batch` sequences of at most `capacity` tokens.

    Every sequence begins in slot 0, so a slot is a position; sequences may differ in length.
    """

    def __init__(self, layers: list[LayerCache], batch: int, capacity: int) -> None:
        """An empty cache over `layers`."""
        self.layers = layers
        self.capacity = capacity
        self.longest = 0
        self.lengths: Int[Tensor, " batch"] | None = None
        self.batch = batch

    @property
    def bytes(self) -> int:
        """The unique storage behind all rows, in bytes, counted on the live tensors."""
        storages = {
            rows.untyped_storage().data_ptr(): rows.untyped_storage().nbytes()
            for layer in self.layers
            for part in (layer, layer.cross)
            if part
            for rows in part.rows.values()
        }
        return sum(storages.values())

    def reserve(self, tokens: int) -> None:
        """Refuse what does not fit."""
        if self.longest + tokens > self.capacity:
            raise ValueError(
                f"The cache holds {self.capacity} tokens; {self.longest} are in it and {tokens} "
                f"more do not fit. Make it with a larger capacity."
            )

    def begin(self, tokens: int, lengths: Int[Tensor, " batch"] | None) -> None:
        """Note that `tokens` slots were filled from the start; `lengths` where they differ."""
        self.longest = tokens
        self.lengths = lengths

    def advance(self) -> None:
        """Note that every sequence has one token more."""
        self.longest += 1
        if self.lengths is not None:
            self.lengths = self.lengths + 1

    def follow(self, parents: Int[Tensor, " batch"]) -> None:
        """Each sequence goes on as its parent's: rows of those that are their own stay as they are.

        What is kept of a source belongs to items, not to sequences, and is not touched.
        """
        moved = (parents != torch.arange(self.batch, device=parents.device)).nonzero()[:, 0]
        if not len(moved):
            return
        origins = parents[moved]
        for layer in self.layers:
            for rows in layer.rows.values():
                rows[moved, :, : self.longest] = rows[origins, :, : self.longest]
        if self.lengths is not None:
            self.lengths = self.lengths[parents]

    def fill_randomly(self, tokens: int, seed: int) -> None:
        """Pretend that `tokens` were read: random rows, for measuring without a prefill."""
        self.reserve(tokens)
        for layer in self.layers:
            for rows in layer.rows.values():
                draws = torch.Generator(rows.device).manual_seed(seed)
                rows[:, :, :tokens].normal_(generator=draws)
        self.begin(tokens, None)

    def append(
        self, layer: LayerCache, name: str, new: Float[Tensor, "batch _heads one head_dim"]
    ) -> None:
        """Write one row for each sequence behind its last; `advance` comes after all layers."""
        rows = layer.rows[name]
        if self.lengths is None:
            rows[:, :, self.longest] = new[:, :, 0]
        else:
            rows[torch.arange(self.batch, device=rows.device), :, self.lengths] = new[:, :, 0].to(
                rows.dtype
            )


def layer_cache(plan: Plan, rotations: Maps, batch: int, capacity: int, like: Tensor) -> LayerCache:
    """Room for `capacity` tokens of what `plan` keeps, with the type and device of `like`."""
    head_dim = plan.geometry.head_dim
    rows = {kept.name: like.new_zeros(batch, kept.heads, capacity, head_dim) for kept in plan.kept}
    return LayerCache(rows, rotations)
