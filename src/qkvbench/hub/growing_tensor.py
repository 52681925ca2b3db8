"""A tensor of cached rows that grows token by token with little unused room."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# `_` is not checked: tensors of one layer differ in heads and width.
Heads = Float[Tensor, "_batch _heads _time _width"]
# Positions are rows, too.
Rows = Shaped[Tensor, "_batch _heads _time _width"]

# A full tensor grows by 1 / GROWTH. A token then costs the copy of about GROWTH rows on average,
# and at most 1 / GROWTH of the rows (and one) are unused.
GROWTH = 32


@dataclass(frozen=True)
class FewBitsRows:
    """Rows that a cache stores as integers with scales: `kind` is int8 or int4.

    ``numbers`` are bytes, ``scales`` one or several of each row of `width` numbers; `whole` makes
    the rows that they stand for.
    """

    kind: str
    width: int
    numbers: Shaped[Tensor, "_batch _heads _time _stored"]
    scales: Float[Tensor, "_batch _heads _time _groups"]
    whole: Callable[[], Heads]


# Cached rows as numbers, or as integers with scales.
Cached = Heads | FewBitsRows


class GrowingTensor:
    """One cached tensor of a layer: a row of each head for every token, oldest first."""

    def __init__(self, reserve: int = 0) -> None:
        """An empty tensor; the first append allocates room for `reserve` tokens."""
        self.length = 0
        self.reserve = reserve
        self._storage: Tensor | None = None
        # Rows that somebody else made are not written to, also if the last ones are removed.
        self._owned = False

    @property
    def is_allocated(self) -> bool:
        """Whether there are rows, or there were before a crop."""
        return self._storage is not None

    @property
    def bytes(self) -> int:
        """Allocated bytes, unused room included."""
        return 0 if self._storage is None else self._storage.untyped_storage().nbytes()

    @property
    def rows(self) -> Rows:
        """A view of all rows; there must be some."""
        assert self._storage is not None
        return self._storage.narrow(2, 0, self.length)

    def append(self, rows: Rows) -> None:
        """Copy these rows behind the others."""
        end = self.length + rows.shape[2]
        if self._storage is None:
            self._reallocate(rows, max(end, self.reserve))
        elif end > self._storage.shape[2] or not self._owned:
            self._reallocate(rows, end + end // GROWTH + 1)
        assert self._storage is not None
        self._storage.narrow(2, self.length, end - self.length).copy_(rows)
        self.length = end

    def replace(self, rows: Rows | None) -> None:
        """Keep these rows instead; if they are the first of the others, with the same room."""
        storage = self._storage
        if rows is None:
            self.clear()
        elif storage is not None and _begin_alike(rows, storage):
            self.length = rows.shape[2]
        else:
            self._storage, self.length, self._owned = rows, rows.shape[2], False

    def crop(self, tokens: int) -> None:
        """Remove the last `tokens`."""
        self.length = max(self.length - tokens, 0)

    def select(self, sequences: Int[Tensor, " sequences"]) -> None:
        """Keep these sequences of the batch, in this order; one may be repeated."""
        if self._storage is not None:
            # As in `_reallocate`: it may be written to outside of inference mode.
            with torch.inference_mode(False):  # noqa: FBT003
                self._storage = self._storage.index_select(0, sequences.to(self._storage.device))
            self._owned = True

    def repeat(self, times: int) -> None:
        """Repeat every sequence so many times, copies side by side."""
        if self._storage is not None:
            self.select(torch.arange(len(self._storage)).repeat_interleave(times))

    def clear(self) -> None:
        """Remove all rows and free their memory."""
        self._storage, self.length = None, 0

    def _reallocate(self, like: Tensor, capacity: int) -> None:
        """Move to a tensor with room for `capacity` rows."""
        batch, heads, _, width = like.shape
        # A cache filled in inference mode may be written to outside of it. The argument is
        # positional because torch.compile cannot trace it as a keyword.
        with torch.inference_mode(False):  # noqa: FBT003
            storage = torch.empty(
                batch, heads, capacity, width, dtype=like.dtype, device=like.device
            )
        if self._storage is not None:
            storage[:, :, : self.length] = self.rows
        self._storage, self._owned = storage, True


def _begin_alike(rows: Rows, storage: Rows) -> bool:
    """Whether these are the first rows of this tensor, not copies of them."""
    return (
        (rows.data_ptr(), rows.dtype, rows.stride())
        == (storage.data_ptr(), storage.dtype, storage.stride())
        and (rows.shape[:2], rows.shape[3]) == (storage.shape[:2], storage.shape[3])
        and rows.shape[2] <= storage.shape[2]
    )
