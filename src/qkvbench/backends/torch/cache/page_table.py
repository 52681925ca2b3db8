"""Page tables: which pages hold the cached rows of each sequence, and which pages are shared.

A page has room for `size` consecutive rows of one sequence, in every cached tensor of the layers
that use the table. Column c of a table maps slots c·size to (c + 1)·size − 1. Several sequences may
share a page; it is copied before one of them writes to it (copy-on-write).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

# Stands in a column for a page that was freed; it must not be read.
FREED = -1


@dataclass(frozen=True)
class Reserved:
    """Allocate all rows up front: one page for each sequence, or pages of `page` rows."""

    page: int | None = None


@dataclass(frozen=True)
class Growing:
    """Allocate pages of `page` rows as tokens arrive; growing copies no rows."""

    page: int = 256


Storage = Reserved | Growing


@dataclass(frozen=True)
class PageRun:
    """Pages of one slab, by their indices in it, and the sequences that read them.

    Adjacent pages are given as a slice; each is then read by the same number of adjacent sequences.
    """

    slab: int
    sequences: Tensor | slice
    pages: Tensor | slice


class PagedStorage(Protocol):
    """Storage with rows for every page of a table."""

    def grow(self, pages: int) -> None:
        """Allocate a slab: rows for `pages` more pages."""
        ...

    def copy(self, source: list[PageRun], target: list[PageRun], rows: int) -> None:
        """Copy the first `rows` rows of each page."""
        ...


class PageTable:
    """The pages of `batch` sequences, by column."""

    def __init__(self, batch: int, size: int, device: torch.device, sinks: int = 0) -> None:
        """An empty table for pages of `size` rows; those of the first `sinks` slots are kept."""
        self.batch = batch
        self.size = size
        self.device = device
        # Pages are allocated one slab at a time; the number of pages in each slab.
        self.slabs: list[int] = []
        # Where `begin_append` directs the new rows: pages, and the row within them.
        self.targets: list[tuple[PageRun, int | Tensor]] = []
        # Changes whenever a sequence gets another page or a page moves in memory, so that kernels
        # know when the addresses they hold are stale.
        self.version = 0
        # Columns before this one were freed.
        self.first_live_column = 0
        # The columns of sink tokens are never freed.
        self._sink_columns = -(-sinks // size)
        self._storages: list[PagedStorage] = []
        # By page: its slab and its index there, and the number of sequences that read it.
        self._location: list[tuple[int, int]] = []
        self._refcount: list[int] = []
        self._free: list[int] = []
        # Pages by column, then by sequence.
        self._columns: list[list[int]] = []
        self._runs: dict[int, list[PageRun]] = {}

    def attach(self, storage: PagedStorage) -> None:
        """Keep rows in this storage, too, for every page of the table."""
        self._storages.append(storage)
        for pages in self.slabs:
            storage.grow(pages)

    def reserve(self, pages: int) -> None:
        """Allocate one slab of free pages."""
        for index in range(pages):
            heappush(self._free, len(self._location))
            self._location.append((len(self.slabs), index))
            self._refcount.append(0)
        self.slabs.append(pages)
        for storage in self._storages:
            storage.grow(pages)

    @property
    def columns(self) -> int:
        """The number of columns, freed ones included."""
        return len(self._columns)

    def locations(self) -> list[list[tuple[int, int] | None]]:
        """Slab and index of every page, by sequence, then column; None for a freed page."""
        return [
            [None if pages[n] == FREED else self._location[pages[n]] for pages in self._columns]
            for n in range(self.batch)
        ]

    def used_rows(self, lengths: Sequence[int]) -> int:
        """Rows that hold a token, in all pages; a shared page counts once."""
        used: dict[int, int] = {}
        for column, pages in enumerate(self._columns):
            for page, length in zip(pages, lengths, strict=True):
                rows = min(max(length - column * self.size, 0), self.size)
                used[page] = max(used.get(page, 0), rows)
        used.pop(FREED, None)
        return sum(used.values())

    def ensure_pages(self, first: int, end: int) -> None:
        """Allocate pages for slots [first, end); free those that lie wholly before `first`."""
        first_live = first // self.size
        if first_live > self.first_live_column or self.columns * self.size < end:
            self.version += 1
        before = self.first_live_column
        self.first_live_column = max(before, first_live)
        for column in range(before, min(first_live, self.columns)):
            if self.is_freed(column):
                self._release(self._columns[column])
                self._columns[column] = [FREED] * self.batch
                self._runs.pop(column, None)
        while self.columns * self.size < end:
            freed = self.is_freed(self.columns)
            self._columns.append([FREED] * self.batch if freed else self._allocate(self.batch))

    def is_freed(self, column: int) -> bool:
        """True if no window will read this column again."""
        return self._sink_columns <= column < self.first_live_column

    def clear(self) -> None:
        """Remove all tokens; the pages stay allocated, for reuse."""
        self.version += 1
        for pages in self._columns:
            self._release(pages)
        self._columns, self.first_live_column = [], 0
        self._runs.clear()

    def reorder(self, parents: Sequence[int]) -> None:
        """Make each sequence a continuation of `parents[n]`, on shared pages; sizes may differ."""
        self.version += 1
        before = self._columns
        self._columns = [[pages[parent] for parent in parents] for pages in before]
        for page in (page for pages in self._columns for page in pages):
            if page != FREED:
                self._refcount[page] += 1
        for pages in before:
            self._release(pages)
        self.batch = len(parents)
        self._runs.clear()

    def begin_append(self, slots: int | Sequence[int]) -> None:
        """Set `targets` for one new row of each sequence, at a common slot or at its own.

        Shared pages are copied first. Pages for these slots must exist.
        """
        each = [slots] * self.batch if isinstance(slots, int) else slots
        columns = [slot // self.size for slot in each]
        for column in set(columns):
            writing = [n for n, own in enumerate(columns) if own == column]
            self._copy_on_write(column, writing, max(each[n] % self.size for n in writing))
        if isinstance(slots, int):
            column, row = divmod(slots, self.size)
            self.targets = [(run, row) for run in self.runs(column)]
            return
        pages = [self._columns[column][n] for n, column in enumerate(columns)]
        rows = torch.tensor([slot % self.size for slot in each], device=self.device)  # (batch,)
        self.targets = [(run, rows[run.sequences]) for run in self._runs_by_slab(pages)]

    def runs(self, column: int) -> list[PageRun]:
        """The pages of a column, as runs within slabs."""
        if column not in self._runs:
            self._runs[column] = self._runs_of(self._columns[column])
        return self._runs[column]

    def _allocate(self, count: int) -> list[int]:
        """Take `count` free pages, each with a refcount of 1."""
        lacking = count - len(self._free)
        if lacking > 0:
            self.reserve(lacking)
        pages = [heappop(self._free) for _ in range(count)]
        for page in pages:
            self._refcount[page] = 1
        return pages

    def _release(self, pages: Sequence[int]) -> None:
        """Drop one reference to each page; free those without any left."""
        for page in pages:
            if page != FREED:
                self._refcount[page] -= 1
                if not self._refcount[page]:
                    heappush(self._free, page)

    def _copy_on_write(self, column: int, sequences: Sequence[int], used: int) -> None:
        """Give each of these sequences a private page here; the last reader keeps the original.

        Only the first `used` rows of a page are copied.
        """
        pages = self._columns[column]
        moving, shared = list[int](), list[int]()
        for sequence in sequences:
            page = pages[sequence]
            if self._refcount[page] > 1:
                self._refcount[page] -= 1
                moving.append(sequence)
                shared.append(page)
        if not moving:
            return
        self.version += 1
        private = self._allocate(len(moving))
        for sequence, page in zip(moving, private, strict=True):
            pages[sequence] = page
        self._runs.pop(column, None)
        source, target = self._runs_by_slab(shared), self._runs_by_slab(private)
        for storage in self._storages:
            storage.copy(source, target, used)

    def _runs_of(self, pages: Sequence[int]) -> list[PageRun]:
        """Runs over these pages, one page for each sequence; one slice if they are adjacent."""
        unique = list(dict.fromkeys(pages))
        (slab, first), (last_slab, _) = self._location[unique[0]], self._location[unique[-1]]
        repeated = [page for page in unique for _ in range(len(pages) // len(unique))]
        adjacent = unique == list(range(unique[0], unique[0] + len(unique))) and slab == last_slab
        if adjacent and repeated == pages:
            return [PageRun(slab, slice(None), slice(first, first + len(unique)))]
        return self._runs_by_slab(pages)

    def _runs_by_slab(self, pages: Sequence[int]) -> list[PageRun]:
        """One run for each slab, with an index for each sequence."""
        by_slab: dict[int, tuple[list[int], list[int]]] = {}
        for sequence, page in enumerate(pages):
            slab, index = self._location[page]
            sequences, indices = by_slab.setdefault(slab, ([], []))
            sequences.append(sequence)
            indices.append(index)
        return [
            PageRun(
                slab,
                self._index(sequences) if len(by_slab) > 1 else slice(None),
                self._index(indices),
            )
            for slab, (sequences, indices) in by_slab.items()
        ]

    def _index(self, numbers: list[int]) -> Int[Tensor, " numbers"]:
        return torch.tensor(numbers, device=self.device)
