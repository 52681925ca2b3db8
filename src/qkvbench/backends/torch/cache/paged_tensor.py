"""One cached tensor in pages, and the tiles in which it is read.

With one page for the whole sequence it is the plain contiguous cache, and is read in one tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from qkvbench.backends.torch.cache.page_table import PageRun, PageTable
from qkvbench.backends.torch.cache.quantize import (
    DTYPES,
    Heads,
    dequantize,
    quantize,
    stored_shapes,
)
from qkvbench.cost import CacheFormat

# Rows gathered, dequantized or rotated at a time: the copy stays in the processor's cache, however
# long the sequence is.
TILE = 256

# A slab has numbers (pages, heads, size, head_dim), two in a byte for int4, and if quantized scales
# (pages, heads, size), or (pages, heads, size, groups).
_Stored = Literal["numbers", "scales"]


@dataclass(frozen=True)
class PagePointers:
    """Addresses of the rows of one cached tensor, for a kernel.

    Row `slot` of head h of sequence b begins ``h * head_stride + (slot % rows) * row_stride``
    elements after ``addresses[b, slot // rows]``; its scales begin
    ``(h * rows + slot % rows) * groups`` numbers after ``scale_addresses[b, slot // rows]``.
    An address of 0 is a freed page. The addresses are
    valid until the table's `version` changes.
    """

    addresses: Int[Tensor, "batch columns"]
    scale_addresses: Int[Tensor, "batch columns"] | None
    rows: int
    head_stride: int
    row_stride: int
    groups: int

    def on(self, device: torch.device) -> "PagePointers":
        """The same addresses, in tensors on this device."""
        scales = self.scale_addresses
        return replace(
            self,
            addresses=self.addresses.to(device),
            scale_addresses=None if scales is None else scales.to(device),
        )


class PagedTensor:
    """The rows of one cached tensor, for the sequences of a page table."""

    def __init__(self, table: PageTable, heads: int, head_dim: int, format: CacheFormat) -> None:
        """Rows in this format for every page of the table."""
        self.table = table
        self.heads = heads
        self.head_dim = head_dim
        self.format = format
        self._slabs: list[dict[_Stored, Tensor]] = []
        table.attach(self)

    @property
    def row_bytes(self) -> int:
        """The bytes of one slot: a row in each head, scales included."""
        return self.heads * self.format.row_bytes(self.head_dim)

    def tensors(self) -> list[Tensor]:
        """All tensors of all slabs."""
        return [tensor for slab in self._slabs for tensor in slab.values()]

    def grow(self, pages: int) -> None:
        """Allocate a slab: rows for `pages` more pages."""
        rows, device = (pages, self.heads, self.table.size), self.table.device
        # A tensor allocated in inference mode could not be written outside of it.
        with torch.inference_mode(False):  # noqa: FBT003
            dtype = DTYPES[self.format.name]
            numbers, scales = stored_shapes(self.format, self.head_dim)
            slab: dict[_Stored, Tensor] = {
                "numbers": torch.zeros(*rows, *numbers, dtype=dtype, device=device)
            }
            if self.format.is_quantized:
                slab["scales"] = torch.zeros(*rows, *scales, device=device)
        self._slabs.append(slab)

    def copy(self, source: list[PageRun], target: list[PageRun], rows: int) -> None:
        """Copy the first `rows` rows of each page."""
        for stored in self._slabs[0]:
            copied = self._get(stored, source, slice(0, rows))
            self._put(stored, target, slice(0, rows), copied)

    def write(self, new: Heads) -> None:
        """Append one row to each sequence, at the `targets` of the table."""
        for stored, rows in self._quantized(new).items():  # (batch, heads, 1, ...)
            for run, row in self.table.targets:
                slab = self._slabs[run.slab][stored]  # (pages, heads, size, ...)
                slab[run.pages, :, row] = rows[run.sequences, :, 0]

    def write_many(self, new: Heads, first: int = 0) -> None:
        """Write the rows of slots first, first + 1, ...; rows for freed pages are dropped.

        The pages must exist and must not be shared.
        """
        size, end = self.table.size, first + new.shape[2]
        for column in range(first // size, -(-end // size)):
            if self.table.is_freed(column):
                continue
            start = column * size
            into = slice(max(first - start, 0), min(end - start, size))
            piece = new[:, :, start + into.start - first : start + into.stop - first]
            for stored, rows in self._quantized(piece).items():
                self._put(stored, self.table.runs(column), into, rows)

    def tiles(
        self, first: int, end: int, kind: torch.dtype, *, most: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The rows of slots [first, end) as consecutive tiles: (first slot of the tile, rows).

        Rows are (batch, heads, time, head_dim) of dtype `kind`. A tile is a view if the column is
        contiguous and needs no conversion, and else a copy of at most `TILE` rows. If adjacent
        sequences share a page, it is given once: there are then fewer than `batch` entries.
        ``most`` further limits the rows of a tile.
        """
        slot, size = first, self.table.size
        while slot < end:
            column, row = divmod(slot, size)
            runs = self.table.runs(column)
            view = DTYPES[self.format.name] == kind and _contiguous(runs)
            rows = min(size - row, end - slot, size if view else TILE, most or size)
            chunk = slice(row, row + rows)
            numbers = self._get("numbers", runs, chunk)
            scales = self._get("scales", runs, chunk) if self.format.is_quantized else None
            yield slot, dequantize(numbers, scales, kind, self.format, self.head_dim)
            slot += rows

    def pointers(self) -> PagePointers:
        """The addresses of all pages."""
        like = self._slabs[0]["numbers"]
        return PagePointers(
            self._addresses("numbers"),
            self._addresses("scales") if self.format.is_quantized else None,
            rows=self.table.size,
            head_stride=like.stride(1),
            row_stride=like.stride(2),
            groups=self.format.groups(self.head_dim),
        )

    def move(self) -> None:
        """Move all rows to other memory, so that timings do not depend on one placement."""
        for slab in self._slabs:
            slab.update({stored: tensor.clone() for stored, tensor in slab.items()})
        self.table.version += 1

    def _addresses(self, stored: _Stored) -> Int[Tensor, "batch columns"]:
        """The address of each page of the numbers or the scales."""

        def address(location: tuple[int, int] | None) -> int:
            if location is None:
                return 0
            slab, index = location
            tensor = self._slabs[slab][stored]
            return tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()

        rows = [[address(each) for each in locations] for locations in self.table.locations()]
        return torch.tensor(rows, dtype=torch.int64).reshape(self.table.batch, self.table.columns)

    def _quantized(self, rows: Heads) -> dict[_Stored, Tensor]:
        """The rows as a slab stores them."""
        numbers, scales = quantize(rows.detach(), self.format)
        stored: dict[_Stored, Tensor] = {"numbers": numbers}
        if scales is not None:
            stored["scales"] = scales
        return stored

    def _get(self, stored: _Stored, runs: list[PageRun], chunk: slice) -> Tensor:
        """These rows of the pages, by sequence: (batch, heads, time, ...)."""
        pieces = [self._slabs[run.slab][stored][:, :, chunk][run.pages] for run in runs]
        if len(runs) == 1:
            return pieces[0]
        whole = pieces[0].new_empty(sum(map(len, pieces)), *pieces[0].shape[1:])
        for run, piece in zip(runs, pieces, strict=True):
            whole[run.sequences] = piece
        return whole

    def _put(self, stored: _Stored, runs: list[PageRun], chunk: slice, new: Tensor) -> None:
        """Write these rows of the pages from (batch, heads, time, ...)."""
        for run in runs:
            self._slabs[run.slab][stored][run.pages, :, chunk] = new[run.sequences]


def _contiguous(runs: list[PageRun]) -> bool:
    """Whether the pages are adjacent, in the order of the sequences."""
    return len(runs) == 1 and isinstance(runs[0].pages, slice)
