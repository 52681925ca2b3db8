"""Which keys a query may attend to, by position: one value that every kernel and cache reads."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of keys: a query's own, its neighbours, and each `every`-th from the first on.

    The strided pattern of arXiv:1904.10509, section 4.2, in blocks of `size` positions.
    """

    size: int
    every: int = 8

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers by which they are written."""
        return (self.size,) if self.every == Blocks(1).every else (self.size, self.every)

    def far(self, first: int, end: int) -> list[slice]:
        """The parts of each `every`-th block that lie from `first` up to `end`."""
        stride = self.size * self.every
        starts = range(first // stride * stride, end, stride)
        parts = (slice(max(first, start), min(start + self.size, end)) for start in starts)
        return [part for part in parts if part.start < part.stop]


@dataclass(frozen=True)
class Mask:
    """The visible keys of each query.

    ``causal``: none after the query. ``window``: those less than `window` positions away, itself
    included; and the first ``sinks`` ones. The first ``global_rows`` queries see all keys.
    ``diagonal`` False: not itself, unless it is alone.
    ``chunk``: those in its own chunk of `chunk` positions. ``blocks``: those in whole blocks.
    """

    causal: bool = False
    window: int | None = None
    sinks: int = 0
    diagonal: bool = True
    chunk: int | None = None
    global_rows: int = 0
    blocks: Blocks | None = None

    @property
    def is_full(self) -> bool:
        """True if at most causality hides a key."""
        return not self.is_sparse and self.diagonal

    @property
    def is_sparse(self) -> bool:
        """True if a long sequence has keys that most queries do not see."""
        return bool(self.window or self.chunk or self.blocks)

    @property
    def local(self) -> int | None:
        """The most keys up to itself that a query sees, beside the sinks; None if it sees all."""
        return self.window or self.chunk

    def visible(self, rows: Any, columns: Any, valid: Any = None) -> Any:
        """True if the query at position `rows[..., i]` may attend to the key at `columns[..., j]`.

        Integer arrays of NumPy, torch or JAX -> booleans (..., rows, columns). ``valid``, which
        broadcasts to that shape, is False for padding. A padded query whose keys are all hidden
        sees itself, so that its softmax is defined.
        """
        columns = columns[..., None, :]
        distance = rows[..., :, None] - columns  # (..., rows, columns)
        visible = distance >= 0 if self.causal else distance == distance
        if self.window is not None:
            near = abs(distance) < self.window
            near = near | (columns < self.sinks) if self.sinks else near
            visible = visible & (near | (rows[..., :, None] < self.global_rows))
        if self.chunk is not None:
            visible = visible & (rows[..., :, None] // self.chunk == columns // self.chunk)
        if self.blocks is not None:
            own, there = rows[..., :, None] // self.blocks.size, columns // self.blocks.size
            visible = visible & ((abs(own - there) < 2) | (there % self.blocks.every == 0))
        if valid is not None:
            visible = visible & valid
            if self.is_sparse:
                alone = ~visible.any(-1)[..., None]
                visible = visible | (alone & (distance == 0))
        if not self.diagonal:
            others = visible & (distance != 0)
            visible = others | (visible & ~others.any(-1)[..., None])
        return visible

    def keys_of(self, first: int, end: int, keys: int) -> list[slice]:
        """The keys that any query from `first` up to `end` may see, of `keys`, in order."""
        last = end if self.causal else keys
        if first < self.global_rows:
            return [slice(0, last)]
        if self.chunk is not None:
            after = -(-end // self.chunk) * self.chunk
            return [slice(first // self.chunk * self.chunk, min(last, after))]
        if self.blocks is not None:
            size = self.blocks.size
            near = slice(max(0, first // size - 1) * size, min(last, (-(-end // size) + 1) * size))
            before, after = self.blocks.far(0, near.start), self.blocks.far(near.stop, last)
            return [*before, near, *after]
        if self.window is None:
            return [slice(0, last)]
        # Sinks may also be later than all queries.
        after = max(end + self.window - 1, self.sinks)
        near = slice(max(0, first - self.window + 1), min(last, after))
        sinks = min(self.sinks, near.start)
        return [slice(0, sinks), near] if sinks else [near]

    def first_slot(self, slot: int) -> int:
        """The first slot of a cache that the token in `slot` sees, sinks left out."""
        if self.chunk is not None:
            return slot // self.chunk * self.chunk
        return 0 if self.window is None else max(0, slot + 1 - self.window)

    def hides_no_key(self, tokens: int) -> bool:
        """True if window, chunk and blocks hide none of `tokens` from any query."""
        if self.blocks is not None:
            return tokens <= 2 * self.blocks.size
        if self.chunk is not None:
            return self.chunk >= tokens
        if self.window is None or self.window >= tokens:
            return True
        return self.causal and self.window + self.sinks >= tokens

    def scores(self, tokens: int) -> int:
        """How many scores `tokens` have: each as many as the widest row that is not global."""
        wide = min(tokens, self.global_rows)
        return wide * tokens + (tokens - wide) * self.max_keys(tokens)

    def max_keys(self, tokens: int) -> int:
        """The most keys that a query sees of `tokens`, ignoring causality's triangle.

        Those that see all are left out.
        """
        if self.chunk is not None:
            return min(tokens, self.chunk)
        if self.blocks is not None:
            return max((keys for _, keys in self.keys_by_block(tokens)), default=0)
        if self.window is None:
            return tokens
        near = self.window if self.causal else 2 * self.window - 1
        return min(tokens, near + self.sinks)

    def last_keys(self, tokens: int) -> int:
        """How many keys the last of `tokens` sees."""
        if self.chunk is not None:
            keys = (tokens - 1) % self.chunk + 1
        else:
            keys = sum(each.stop - each.start for each in self.keys_of(tokens - 1, tokens, tokens))
        return keys if self.diagonal or keys == 1 else keys - 1

    def keys_by_block(self, tokens: int) -> list[tuple[int, int]]:
        """For each block of `tokens`: how many rows it has, and how many keys these see together.

        Those of the rows' own block are counted for each, later ones, too.
        """
        assert self.blocks is not None
        size, stride = self.blocks.size, self.blocks.size * self.blocks.every
        found: list[tuple[int, int]] = []
        for first in range(0, tokens, size):
            end = min(first + size, tokens)
            start, stop = max(0, first - size), end if self.causal else min(end + size, tokens)
            last = end if self.causal else tokens
            near = sum(_before(at, size, stride) * sign for at, sign in ((stop, 1), (start, -1)))
            found.append((end - first, stop - start + _before(last, size, stride) - near))
        return found


def _before(position: int, size: int, stride: int) -> int:
    """How many positions before this one lie in the first `size` of each `stride`."""
    whole, rest = divmod(position, stride)
    return whole * size + min(rest, size)
