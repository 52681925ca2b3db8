"""A layer of a cache of transformers that keeps rows in growing tensors of its own."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from qkvbench.hub.growing_tensor import GrowingTensor


class RowsLayer(CacheLayerMixin):
    """All that a layer does to its rows, whatever they are, but reading and appending."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    @property
    @abstractmethod
    def tensors(self) -> Sequence[GrowingTensor]:
        """All tensors that take memory; each has a row for every token."""

    @property
    def bytes(self) -> int:
        """Allocated bytes, unused room included."""
        return sum(tensor.bytes for tensor in self.tensors)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """No-op: the first append allocates."""

    def get_seq_length(self) -> int:
        """How many tokens are cached."""
        return self.tensors[0].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots a mask has, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: there is no limit; the name in older versions of the library."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: so many if negative, else down to so many."""
        before = self.get_seq_length()
        after = tokens_to_remove if tokens_to_remove > 0 else before + tokens_to_remove
        for tensor in self.tensors:
            tensor.crop(before - min(after, before))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace each sequence by the one that a beam continues."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences of the batch."""
        for tensor in self.tensors:
            tensor.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence so many times, copies side by side."""
        for tensor in self.tensors:
            tensor.repeat(repeats)

    def reset(self) -> None:
        """Remove all tokens."""
        self.is_initialized = False
        for tensor in self.tensors:
            tensor.clear()

    def offload(self) -> None:
        """Refuse: the rows stay on the model's device."""
        raise NotImplementedError("This cache stays on its device: pass no offloading cache.")
