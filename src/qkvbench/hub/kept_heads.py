"""A slim cache of K/V heads that the library caches once for every query head of their group.

Falcon's new architecture copies each K/V head for its query heads before it caches them. One copy
is enough, to the bit.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qkvbench.hub.families import EXPANDED
from qkvbench.hub.growing_tensor import GrowingTensor, Heads


@dataclass(frozen=True)
class OneOfCopies:
    """One layer whose cached heads come in groups of this many copies."""

    layer: int
    copies: int
    tolerance: float = 0.0


def copied_heads(model: nn.Module) -> dict[int, OneOfCopies]:
    """The layers whose K/V heads the library copies, by number."""
    found: dict[int, OneOfCopies] = {}
    for part in model.modules():
        if type(part).__name__ in EXPANDED:
            attention: Any = part
            copies = EXPANDED[type(part).__name__](attention)
            if copies > 1:
                found[attention.layer_idx] = OneOfCopies(attention.layer_idx, copies)
    return found


class CopiedHeadsReader:
    """The cached K and V of one layer, one copy of each head."""

    def __init__(self, recipe: OneOfCopies, reserve: int = 0) -> None:
        """An empty cache with room for `reserve` tokens."""
        self.recipe = recipe
        self._keys, self._values = GrowingTensor(reserve), GrowingTensor(reserve)

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        return self._keys, self._values

    def append(self, key: Heads, value: Heads, position_ids: Tensor | None) -> None:
        """Cache the first copy of each head of new tokens."""
        self._keys.append(key[:, :: self.recipe.copies])
        self._values.append(value[:, :: self.recipe.copies])

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows, with all copies."""
        key, value = (
            tensor.rows[:, :, rows].repeat_interleave(self.recipe.copies, dim=1)
            for tensor in self.tensors
        )
        return key, value
