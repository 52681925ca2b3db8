"""A cache in int8 or int4 for models with ``qkv_mode``: rows as integers with scales.

The tensors are those that the plan caches, so a tie has one. Rows are rounded when they are new, in
a prompt as in a decoding step, and stay as they are.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.cost import CACHE_FORMATS, CacheFormat
from qkvbench.hub.growing_tensor import FewBitsRows, GrowingTensor, Heads, Rows
from qkvbench.hub.models import attention_layers
from qkvbench.hub.rows_layer import RowsLayer

FewBits = Literal["int8", "int4"]


class FewBitsCache(Cache):
    """A cache for a model with ``qkv_mode`` whose rows are integers, with a scale in fp32.

    It takes the place of the library's own, as ``past_key_values``. int8 has one scale for each
    head of a row, int4 one for 32 numbers of it: 68 and 40 bytes for a head of 64. On a
    CPU a decoding step reads rows where they lie, by the native kernel; otherwise, and in a prompt,
    the rows of one layer at a time are made whole. All rows are kept, also in layers with a sliding
    window, of which the library's cache keeps the last ones alone: over texts of many windows that
    one is smaller.
    """

    def __init__(self, model: PreTrainedModel, rows: FewBits = "int8", *, reserve: int = 0) -> None:
        """An empty cache for sequences of this model, with room for `reserve` tokens.

        ValueError if the model has no ``qkv_mode`` or an encoder, or if there are no such rows.
        """
        layers = [ours for _, ours in attention_layers(model)]
        if rows not in get_args(FewBits):
            raise ValueError(f"There are no rows in {rows!r}; write int8 or int4.")
        if not layers or model.config.is_encoder_decoder:
            raise ValueError(
                f"FewBitsCache serves decoders with qkv_mode; {type(model).__name__} has "
                f"{'an encoder' if layers else 'none'}.\n"
                "hub.convert(model, 'canonical') makes one of a decoder of the library: the same "
                "outputs."
            )
        kept = {one.layer_idx: one.plan for one in layers}
        form = CACHE_FORMATS[rows]
        super().__init__(
            layers=[FewBitsLayer(form, len(kept[n].cached), reserve) for n in sorted(kept)]
        )

    @property
    def bytes(self) -> int:
        """The storage of all rows, scales and positions, unused room included."""
        return sum(cast(FewBitsLayer, layer).bytes for layer in self.layers)


class FewBitsLayer(RowsLayer):
    """The rows of one layer: of two tensors, or of one and what the library keeps beside it."""

    def __init__(self, form: CacheFormat, cached: int, reserve: int = 0) -> None:
        """An empty layer of so many tensors."""
        super().__init__()
        self._rows = [_Integers(form, reserve) for _ in range(cached)]
        # Positions, or nothing, in the place of values.
        self._beside = GrowingTensor(reserve) if cached == 1 else None

    @property
    def tensors(self) -> Sequence[GrowingTensor]:
        """All tensors that take memory."""
        beside = [] if self._beside is None else [self._beside]
        return [*(each for rows in self._rows for each in rows.tensors), *beside]

    @property
    def keys(self) -> Tensor | None:
        """The first tensor, whole, for code that reads a cache without appending to it."""
        return self._rows[0].stored.whole() if self.is_initialized else None

    @keys.setter
    def keys(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: rows are stored as integers."""

    @property
    def values(self) -> Tensor | None:
        """The second tensor, whole, or what is beside the first."""
        if not self.is_initialized:
            return None
        return self._rows[1].stored.whole() if self._beside is None else self._beside.rows

    @values.setter
    def values(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: rows are stored as integers."""

    def update(self, key_states: Heads, value_states: Rows, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Round and append the new rows; all rows as they are stored."""
        if key_states.requires_grad or value_states.requires_grad:
            raise ValueError(
                "A cache in few bits keeps rows without their gradients.\n"
                "Run the model under torch.no_grad(), or train it without a cache."
            )
        self.is_initialized = True
        self._rows[0].append(key_states)
        if self._beside is None:
            self._rows[1].append(value_states)
            return self._rows[0].stored, self._rows[1].stored
        self._beside.append(value_states)
        return self._rows[0].stored, self._beside.rows


class _Integers:
    """One tensor of rows that are stored as integers."""

    def __init__(self, form: CacheFormat, reserve: int) -> None:
        self.form, self.numbers, self.scales = form, GrowingTensor(reserve), GrowingTensor(reserve)
        self._width, self._dtype = 0, torch.float32

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        return self.numbers, self.scales

    def append(self, rows: Heads) -> None:
        """Round and append rows."""
        self._width, self._dtype = rows.shape[-1], rows.dtype
        numbers, scales = quantize(rows, self.form)
        assert scales is not None, "int8 and int4 have scales"
        self.numbers.append(numbers)
        self.scales.append(scales if self.form.group else scales[..., None])

    @property
    def stored(self) -> FewBitsRows:
        """All rows."""
        numbers, scales = self.numbers.rows, self.scales.rows
        groups = scales if self.form.group else scales[..., 0]
        whole = partial(dequantize, numbers, groups, self._dtype, self.form, self._width)
        return FewBitsRows(self.form.name, self._width, numbers, scales, whole)
