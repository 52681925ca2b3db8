"""Which page each sequence reads: tables of pages, and what several sequences share.

A page is room for `size` rows of one sequence, in every kept tensor of the layers that go by one
table. Column c of a table holds the slots from c·size on. Sequences may read one page; whoever
writes to it first gets a copy of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

# A page that was given back: nothing is there, and nothing may read it.
FREED = -1


@dataclass(frozen=True)
class Reserved:
    """All rows when the cache is made: one page for each sequence, or pages of `page` rows."""

    page: int | None = None


@dataclass(frozen=True)
class Growing:
    """Pages of `page` rows, made as tokens come; what is there is never copied to grow."""

    page: int = 256


Storage = Reserved | Growing


@dataclass(frozen=True)
class PageRun:
    """Pages that lie in one slab, at these places, and which sequences read them.

    Pages next to each other are a slice; each is then read by as many sequences side by side.
    """

    slab: int
    sequences: Tensor | slice
    places: Tensor | slice


class PagedStorage(Protocol):
    """What has rows for every page of a table."""

    def grow(self, pages: int) -> None:
        """Make rows for so many more pages: a slab."""
        ...

    def copy(self, source: list[PageRun], target: list[PageRun], rows: int) -> None:
        """Copy the first `rows` of pages."""
        ...


class PageTable:
    """The pages of `batch` sequences, by column."""

    def __init__(self, batch: int, size: int, device: torch.device, sinks: int = 0) -> None:
        """A table without pages, each of which will have `size` rows.

        Pages with any of the first `sinks` slots are never given back.
        """
        self.batch = batch
        self.size = size
        self.device = device
        self._sink_columns = -(-sinks // size)
        # Pages are made a slab at a time: how many there are in each.
        self.slabs: list[int] = []
        # Where the new rows of an opened slot go, and in which row of their pages.
        self.targets: list[tuple[PageRun, int | Tensor]] = []
        # Another number whenever a sequence reads another page, or a page lies elsewhere.
        self.version = 0
        self._rooms: list[PagedStorage] = []
        # By page: its slab and its place there, and how many sequences read it.
        self._location: list[tuple[int, int]] = []
        self._refcount: list[int] = []
        self._free: list[int] = []
        # By column, then by sequence.
        self._columns: list[list[int]] = []
        # The columns before this one were given back.
        self._first_live_column = 0
        self._parts: dict[int, list[PageRun]] = {}

    def join(self, rooms: PagedStorage) -> None:
        """Have rows there for every page, too."""
        self._rooms.append(rooms)
        for pages in self.slabs:
            rooms.grow(pages)

    def reserve(self, pages: int) -> None:
        """Make so many pages, to be taken later."""
        for place in range(pages):
            heappush(self._free, len(self._location))
            self._location.append((len(self.slabs), place))
            self._refcount.append(0)
        self.slabs.append(pages)
        for rooms in self._rooms:
            rooms.grow(pages)

    @property
    def first_column(self) -> int:
        """The first column, sinks aside, whose pages are still there."""
        return self._first_live_column

    def is_live(self, column: int) -> bool:
        """True if pages of this column are there."""
        return column < self._sink_columns or column >= self._first_live_column

    @property
    def columns(self) -> int:
        """How many columns there are, those that were given back included."""
        return len(self._columns)

    def locations(self) -> list[list[tuple[int, int] | None]]:
        """Slab and place of every page, by sequence, then column; None where it was given back."""
        return [
            [None if pages[n] == FREED else self._location[pages[n]] for pages in self._columns]
            for n in range(self.batch)
        ]

    def used_rows(self, lengths: Sequence[int]) -> int:
        """Rows of slots that hold a token, in all pages; one that is shared counts once."""
        filled: dict[int, int] = {}
        for column, pages in enumerate(self._columns):
            for page, length in zip(pages, lengths, strict=True):
                rows = min(max(length - column * self.size, 0), self.size)
                filled[page] = max(filled.get(page, 0), rows)
        filled.pop(FREED, None)
        return sum(filled.values())

    def ensure_pages(self, first: int, end: int) -> None:
        """Have a page for every slot from `first` up to `end`; give back those wholly before."""
        left = first // self.size
        if left > self._first_live_column or self.columns * self.size < end:
            self.version += 1
        freed_first = max(self._first_live_column, self._sink_columns)
        for column in range(freed_first, min(left, self.columns)):
            self._free_pages(self._columns[column])
            self._columns[column] = [FREED] * self.batch
            self._parts.pop(column, None)
        self._first_live_column = max(self._first_live_column, left)
        while self.columns * self.size < end:
            unseen = self._sink_columns <= self.columns < self._first_live_column
            self._columns.append([FREED] * self.batch if unseen else self._allocate(self.batch))

    def clear(self) -> None:
        """Forget all sequences; the pages stay, to be taken again."""
        self.version += 1
        for pages in self._columns:
            self._free_pages(pages)
        self._columns, self._first_live_column = [], 0
        self._parts.clear()

    def follow(self, parents: Sequence[int]) -> None:
        """Each sequence goes on as its parent's, on the same pages; there may be more or fewer."""
        self.version += 1
        before = self._columns
        self._columns = [[pages[parent] for parent in parents] for pages in before]
        for page in (page for pages in self._columns for page in pages if page != FREED):
            self._refcount[page] += 1
        for pages in before:
            self._free_pages(pages)
        self.batch = len(parents)
        self._parts.clear()

    def open(self, slots: int | Sequence[int]) -> None:
        """Prepare to write one row of each sequence: at the same slot, or at each its own.

        A page that others read too is copied first. There must be pages for these slots.
        """
        each = [slots] * self.batch if isinstance(slots, int) else slots
        columns = [slot // self.size for slot in each]
        for column in set(columns):
            writing = [n for n, own in enumerate(columns) if own == column]
            self._copy_on_write(column, writing, max(each[n] % self.size for n in writing))
        if isinstance(slots, int):
            column, row = divmod(slots, self.size)
            self.targets = [(part, row) for part in self.parts(column)]
            return
        pages = [self._columns[column][n] for n, column in enumerate(columns)]
        rows = torch.tensor([slot % self.size for slot in each], device=self.device)
        self.targets = [(part, rows[part.sequences]) for part in self._runs_by_slab(pages)]

    def parts(self, column: int) -> list[PageRun]:
        """Where the pages of a column lie."""
        if column not in self._parts:
            self._parts[column] = self._runs(self._columns[column])
        return self._parts[column]

    def _allocate(self, count: int) -> list[int]:
        """So many pages that nobody reads, each now read by one sequence."""
        lacking = count - len(self._free)
        if lacking > 0:
            self.reserve(lacking)
        pages = [heappop(self._free) for _ in range(count)]
        for page in pages:
            self._refcount[page] = 1
        return pages

    def _free_pages(self, pages: Sequence[int]) -> None:
        for page in pages:
            if page != FREED:
                self._refcount[page] -= 1
                if not self._refcount[page]:
                    heappush(self._free, page)

    def _copy_on_write(self, column: int, sequences: Sequence[int], used: int) -> None:
        """Have these sequences read pages of their own in this column; a page's last reader keeps.

        Of a page that is copied, `used` rows are.
        """
        pages = self._columns[column]
        moving, copied = list[int](), list[int]()
        for sequence in sequences:
            page = pages[sequence]
            if self._refcount[page] > 1:
                self._refcount[page] -= 1
                moving.append(sequence)
                copied.append(page)
        if not moving:
            return
        self.version += 1
        own = self._allocate(len(moving))
        for sequence, page in zip(moving, own, strict=True):
            pages[sequence] = page
        self._parts.pop(column, None)
        source, target = self._runs_by_slab(copied), self._runs_by_slab(own)
        for rooms in self._rooms:
            rooms.copy(source, target, used)

    def _runs(self, pages: Sequence[int]) -> list[PageRun]:
        """Where these pages lie, one for each sequence; those next to each other are one slice."""
        own = list(dict.fromkeys(pages))
        (slab, first), (last_slab, _) = self._location[own[0]], self._location[own[-1]]
        repeated = [page for page in own for _ in range(len(pages) // len(own))]
        running = own == list(range(own[0], own[0] + len(own))) and slab == last_slab
        if running and repeated == pages:
            return [PageRun(slab, slice(None), slice(first, first + len(own)))]
        return self._runs_by_slab(pages)

    def _runs_by_slab(self, pages: Sequence[int]) -> list[PageRun]:
        """Where these pages lie, one for each sequence, page by page."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for sequence, page in enumerate(pages):
            slab, place = self._location[page]
            sequences, places = found.setdefault(slab, ([], []))
            sequences.append(sequence)
            places.append(place)
        return [
            PageRun(
                slab,
                self._index(sequences) if len(found) > 1 else slice(None),
                self._index(places),
            )
            for slab, (sequences, places) in found.items()
        ]

    def _index(self, numbers: list[int]) -> Int[Tensor, " numbers"]:
        return torch.tensor(numbers, device=self.device)
