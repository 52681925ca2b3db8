"""Which keys a query may attend to, by position: one value that every kernel and cache reads."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mask:
    """The visible keys of each query.

    ``causal``: none after the query. ``window``: those less than `window` positions away, itself
    included; and the first ``sinks`` ones. The first ``global_rows`` queries see all keys.
    ``diagonal`` False: not itself, unless it is alone.
    ``chunk``: those in its own chunk of `chunk` positions.
    """

    causal: bool = False
    window: int | None = None
    sinks: int = 0
    diagonal: bool = True
    chunk: int | None = None
    global_rows: int = 0

    @property
    def is_full(self) -> bool:
        """True if at most causality hides a key."""
        return self.local is None and self.diagonal

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
        if valid is not None:
            visible = visible & valid
            if self.local is not None:
                alone = ~visible.any(-1)[..., None]
                visible = visible | (alone & (distance == 0))
        if not self.diagonal:
            others = visible & (distance != 0)
            visible = others | (visible & ~others.any(-1)[..., None])
        return visible

    def keys_of(self, first: int, end: int, keys: int) -> slice:
        """The keys that any query from `first` up to `end` may see, of `keys`.

        Of the sinks only those that are near, or later than all queries.
        """
        last = end if self.causal else keys
        if first < self.global_rows:
            return slice(0, last)
        if self.chunk is not None:
            after = -(-end // self.chunk) * self.chunk
            return slice(first // self.chunk * self.chunk, min(last, after))
        if self.window is None:
            return slice(0, last)
        after = max(end + self.window - 1, self.sinks)
        return slice(max(0, first - self.window + 1), min(last, after))

    def first_slot(self, slot: int) -> int:
        """The first slot of a cache that the token in `slot` sees, sinks left out."""
        if self.chunk is not None:
            return slot // self.chunk * self.chunk
        return 0 if self.window is None else max(0, slot + 1 - self.window)

    def hides_no_key(self, tokens: int) -> bool:
        """True if window and chunk hide none of `tokens` from any query."""
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
        if self.window is None:
            return tokens
        near = self.window if self.causal else 2 * self.window - 1
        return min(tokens, near + self.sinks)
