"""A slim cache of an encoder's output, from which all cross-attention layers make K and V.

The library caches K and V of each layer. Both are linear maps of one tensor: with q W_Kᵀ in place
of q the scores are products with the encoder's output x, and the weighted sum of V is W_V of the
weighted sum of x. So neither is made while a text is generated. K's bias is the same number for
each row of x, which a softmax leaves out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from qkvbench.backends.torch.attention.ops import absorb_into_output, absorb_into_query
from qkvbench.hub.growing_tensor import Heads
from qkvbench.hub.linear_attention import KeyValueWeights, cross_attentions, weights_of
from qkvbench.hub.slim_attention import (
    CHECKED_ROWS,
    Mask,
    Queries,
    attention_weights,
    check_rows,
    uses_readers,
)
from qkvbench.hub.unmade import unmade
from qkvbench.variant import UpProject


@dataclass(frozen=True)
class StatesOfEncoder:
    """How one layer makes K and V from the encoder's output: by its own weights, as they are."""

    layer: int
    attention: nn.Module
    tolerance: float

    @property
    def weights(self) -> KeyValueWeights:
        """The projections of the layer."""
        return weights_of(self.attention)


class EncoderOutput:
    """The output of the encoder, kept once for all layers; it is the encoder's own tensor."""

    def __init__(self) -> None:
        """No output yet."""
        self.rows: Tensor | None = None  # (batch, time, width)

    @property
    def bytes(self) -> int:
        """Its storage."""
        return 0 if self.rows is None else self.rows.untyped_storage().nbytes()


def states_of_encoder(model: nn.Module, tolerance: float) -> dict[int, StatesOfEncoder]:
    """The cross-attention layers of a model, by number."""
    return {
        number: StatesOfEncoder(number, part, tolerance) for number, part in cross_attentions(model)
    }


class EncoderReader:
    """Attention of one layer over the encoder's output."""

    def __init__(self, recipe: StatesOfEncoder, output: EncoderOutput) -> None:
        """The layer; `output` is filled when the layer is first called."""
        self.recipe, self.output = recipe, output

    def placeholders(self) -> tuple[Heads, Heads]:
        """K and V that are not made."""
        rows, weights = self._rows, self.recipe.weights
        shape = (len(rows), weights.heads, rows.shape[1], weights.key.shape[1] // weights.heads)
        like = rows.new_empty(()).expand(shape)
        return unmade(like, self, 0), unmade(like, self, 1)

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        weights, inputs = self.recipe.weights, self._rows[:, rows]
        return weights.keys(inputs), weights.values(inputs)

    def attend(self, query: Queries, mask: Mask | None, scaling: float) -> Queries:
        """softmax(q·k·scaling + mask)·v, from products with the encoder's output."""
        rows, weights = self._rows, self.recipe.weights
        batch, heads, queries, _ = query.shape
        op = UpProject("k", heads, query.shape[-1])
        wide = absorb_into_query(query, (op,), {"k": weights.maps(weights.key)}, _no_vector)
        scores = (wide.flatten(1, 2) @ rows.mT).view(batch, heads, queries, -1) * scaling
        return self.weighted(attention_weights(scores, mask).to(rows.dtype))

    def weighted(self, weights: Tensor) -> Queries:
        """The sum of V with these weights, from that of the encoder's output."""
        rows, maps = self._rows, self.recipe.weights
        batch, heads, queries, _ = weights.shape
        context = (weights.flatten(1, 2) @ rows).view(batch, heads, queries, -1)
        op = UpProject("v", heads, maps.value.shape[1] // heads)
        output = absorb_into_output(context, (op,), {"v": maps.maps(maps.value)})
        if maps.value_bias is None:
            return output
        return output + maps.value_bias.view(heads, 1, -1)

    @property
    def _rows(self) -> Tensor:
        assert self.output.rows is not None, "the layer has been called"
        return self.output.rows


class EncoderLayer(CacheLayerMixin):
    """Cross-attention of one layer, as the library's layers expect it: they read K and V."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, recipe: StatesOfEncoder, config: Any, output: EncoderOutput) -> None:
        """An empty layer."""
        super().__init__()
        self.recipe, self.config = recipe, config
        self.reader = EncoderReader(recipe, output)

    @property
    def keys(self) -> Tensor | None:
        """K, or its placeholder, once there is an encoder's output."""
        return self._states()[0] if self.is_initialized else None

    @keys.setter
    def keys(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: K is made from the encoder's output."""

    @property
    def values(self) -> Tensor | None:
        """V, or its placeholder, once there is an encoder's output."""
        return self._states()[1] if self.is_initialized else None

    @values.setter
    def values(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: V is made from the encoder's output."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """No-op: nothing is allocated."""

    def update(
        self, key_states: Heads, value_states: Heads, *args: Any, **kwargs: Any
    ) -> tuple[Heads, Heads]:
        """K and V as they are; they must be those that the encoder's output makes."""
        self.is_initialized = True
        rows = slice(-CHECKED_ROWS, None)
        states = key_states[:, :, rows], value_states[:, :, rows]
        check_rows(self.recipe, states, lambda: self.reader.materialize(rows))
        return key_states, value_states

    def get_seq_length(self) -> int:
        """How many rows of the encoder's output there are."""
        rows = self.reader.output.rows
        return 0 if rows is None or not self.is_initialized else rows.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots a mask has, and the first of them."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: there is no limit; the name in older versions of the library."""
        return -1

    def reset(self) -> None:
        """Forget the encoder's output."""
        self.is_initialized = False
        self.reader.output.rows = None

    def _states(self) -> tuple[Heads, Heads]:
        if uses_readers(self.config):
            return self.reader.placeholders()
        return self.reader.materialize()


class EncoderCache(Cache):
    """The cross-attention cache of a slim model: the encoder's output, once for all layers."""

    def __init__(self, recipes: Mapping[int, StatesOfEncoder], config: Any) -> None:
        """An empty cache."""
        self.output = EncoderOutput()
        layers: list[Any] = [
            EncoderLayer(recipe, config, self.output) for _, recipe in sorted(recipes.items())
        ]
        super().__init__(layers=layers)

    @property
    def bytes(self) -> int:
        """The storage of the encoder's output."""
        return self.output.bytes

    def keep(self, states: Tensor) -> None:
        """Keep the encoder's output, if there is none yet; ValueError if it has gradients."""
        if states.requires_grad:
            raise ValueError(
                "A slim cache keeps the encoder's output without its gradients.\n"
                "Run the model under torch.no_grad(), or train it without a cache."
            )
        if self.output.rows is None:
            self.output.rows = states

    def crop(self, tokens_to_remove: int) -> None:
        """No-op: the encoder's output has no tokens of the decoder."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace each sequence by the one that a beam continues."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences of the batch."""
        if self.output.rows is not None:
            rows = self.output.rows
            self.output.rows = rows.index_select(0, indices.to(rows.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence so many times, copies side by side."""
        if self.output.rows is not None:
            self.output.rows = self.output.rows.repeat_interleave(repeats, dim=0)


def _no_vector(name: str) -> Tensor:
    raise AssertionError(f"cross-attention of these classes has no {name}")
