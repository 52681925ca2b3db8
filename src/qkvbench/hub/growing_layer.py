"""A layer of the library's dynamic cache whose rows grow in place.

The library copies all rows of a layer for each token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from qkvbench.hub.growing_tensor import GrowingTensor, Rows


class GrowingLayer(DynamicLayer):
    """As the library's layer, with a little room behind its rows.

    Everything but an update is the library's: it replaces K and V by other tensors.
    """

    def __init__(self) -> None:
        """An empty layer."""
        self._keys, self._values = GrowingTensor(), GrowingTensor()
        super().__init__()

    @classmethod
    def of(cls, layer: DynamicLayer) -> "GrowingLayer":
        """A layer with the rows of one of the library's."""
        grown = cls()
        if layer.keys is not None and layer.values is not None:
            grown.lazy_initialization(layer.keys, layer.values)
            grown.keys, grown.values = layer.keys, layer.values
        return grown

    @property
    def keys(self) -> Tensor | None:
        """K of all tokens."""
        return self._keys.rows if self._keys.is_allocated else None

    @keys.setter
    def keys(self, rows: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keep other rows."""
        self._keys.replace(rows)

    @property
    def values(self) -> Tensor | None:
        """V of all tokens."""
        return self._values.rows if self._values.is_allocated else None

    @values.setter
    def values(self, rows: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keep other rows."""
        self._values.replace(rows)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """No rows yet; the first update allocates."""
        self.device, self.is_initialized = key_states.device, True

    def update(
        self, key_states: Rows, value_states: Rows, *args: Any, **kwargs: Any
    ) -> tuple[Rows, Rows]:
        """Append the new rows; all of K and V."""
        self.lazy_initialization(key_states, value_states)
        in_place = not torch.compiler.is_compiling()
        for tensor, new in ((self._keys, key_states), (self._values, value_states)):
            if in_place and not new.requires_grad:
                tensor.append(new)
            else:
                # Compilers trace a copy, and gradients need the rows as they were.
                tensor.replace(
                    torch.cat([*([tensor.rows] if tensor.is_allocated else []), new], dim=2)
                )
        return self._keys.rows, self._values.rows

    def get_seq_length(self) -> int:
        """How many tokens are cached."""
        return self._keys.length
