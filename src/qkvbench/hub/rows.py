"""Rows of past tokens in one tensor that grows with little room to spare."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# `_` is checked for nothing: the rows of one layer differ in what they are of.
Heads = Float[Tensor, "_batch _heads _time _width"]

# A tensor that is full grows by one part in so many. Each token then pays for moving about as many
# rows, however long the cache is, and what lies unused is at most this part of it, and a row.
ROOM = 32


class Rows:
    """What one layer keeps of one tensor: a row of each head for every token, oldest first."""

    def __init__(self, reserve: int = 0) -> None:
        """No rows yet; room for `reserve` tokens when the first come."""
        self.length = 0
        self.reserve = reserve
        self._stored: Tensor | None = None

    @property
    def bytes(self) -> int:
        """What lies in memory, unused room included."""
        return 0 if self._stored is None else self._stored.untyped_storage().nbytes()

    @property
    def kept(self) -> Heads:
        """All rows, without a copy; there must be some."""
        assert self._stored is not None
        return self._stored[:, :, : self.length]

    def append(self, new: Heads) -> None:
        """Keep these rows behind the others."""
        end = self.length + new.shape[2]
        if self._stored is None:
            self._move(new, max(end, self.reserve))
        elif end > self._stored.shape[2]:
            self._move(new, end + end // ROOM + 1)
        assert self._stored is not None
        self._stored[:, :, self.length : end] = new
        self.length = end

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens`."""
        self.length = max(self.length - tokens, 0)

    def select(self, sequences: Int[Tensor, " sequences"]) -> None:
        """Go on with these sequences; one may stand there several times."""
        if self._stored is not None:
            self._stored = self._stored.index_select(0, sequences.to(self._stored.device))

    def repeat(self, times: int) -> None:
        """Have every sequence there so many times, side by side."""
        if self._stored is not None:
            self.select(torch.arange(len(self._stored)).repeat_interleave(times))

    def clear(self) -> None:
        """Forget all tokens, and give the memory back."""
        self._stored, self.length = None, 0

    def _move(self, like: Tensor, capacity: int) -> None:
        """Lie where there is room for `capacity` rows."""
        batch, heads, _, width = like.shape
        # What is made while decoding in inference mode is written to outside of it, too.
        with torch.inference_mode(mode=False):
            room = torch.empty(batch, heads, capacity, width, dtype=like.dtype, device=like.device)
        if self._stored is not None:
            room[:, :, : self.length] = self.kept
        self._stored = room
