"""The rows of one kept tensor in pages, and the tiles in which they are read.

One page for all that a sequence may ever hold is the plain contiguous cache: it is read whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from qkvbench.backends.torch.cache.page_table import PageRun, PageTable
from qkvbench.backends.torch.cache.quantize import DTYPES, Heads, dequantize, quantize
from qkvbench.cost import CacheFormat

# Rows that are gathered, converted or turned at a time when they are read: the copy stays this
# long, however long the cache is, and in the processor's own cache.
TILE = 256

# What is stored: numbers (pages, heads, size, head_dim), and where a row has a scale, those
# (pages, heads, size).
_Stored = Literal["numbers", "scales"]


@dataclass(frozen=True)
class PagePointers:
    """Where the rows of one kept tensor lie, for a kernel that reads them by address.

    Row `slot` of head h of sequence b begins ``h * head_stride + (slot % rows) * row_stride``
    numbers behind ``addresses[b, slot // rows]``; its scale lies ``h * rows + slot % rows`` numbers
    behind ``scale_addresses[b, slot // rows]``. An address of 0 is a page that was given back. All
    of it is good until the cache is next written to, rearranged or moved.
    """

    addresses: Int[Tensor, "batch columns"]
    scale_addresses: Int[Tensor, "batch columns"] | None
    rows: int
    head_stride: int
    row_stride: int

    def on(self, device: torch.device) -> "PagePointers":
        """The same, told on a device."""
        scales = self.scale_addresses
        return replace(
            self,
            addresses=self.addresses.to(device),
            scale_addresses=None if scales is None else scales.to(device),
        )


class PagedTensor:
    """The rows of one kept tensor, for the sequences of a table."""

    def __init__(self, table: PageTable, heads: int, head_dim: int, format: CacheFormat) -> None:
        """Rows of type `kind` for every page of the table."""
        self.table = table
        self.heads = heads
        self.head_dim = head_dim
        self.format = format
        self._slabs: list[dict[_Stored, Tensor]] = []
        table.join(self)

    @property
    def row_bytes(self) -> int:
        """The bytes of one slot: its row in each head, with its scale."""
        return self.heads * self.format.row_bytes(self.head_dim)

    def tensors(self) -> list[Tensor]:
        """Everything that lies in memory."""
        return [tensor for slab in self._slabs for tensor in slab.values()]

    def grow(self, pages: int) -> None:
        """Make rows for so many more pages."""
        rows, device = (pages, self.heads, self.table.size), self.table.device
        # What is made while decoding in inference mode is written to outside of it, too.
        with torch.inference_mode(mode=False):
            kind = DTYPES[self.format.name]
            slab: dict[_Stored, Tensor] = {
                "numbers": torch.zeros(*rows, self.head_dim, dtype=kind, device=device)
            }
            if self.format.is_quantized:
                slab["scales"] = torch.zeros(rows, device=device)
        self._slabs.append(slab)

    def copy(self, source: list[PageRun], target: list[PageRun], rows: int) -> None:
        """Copy the first `rows` of pages."""
        for stored in self._slabs[0]:
            found = self._get(stored, source, slice(0, rows))
            self._put(stored, target, slice(0, rows), found)

    def write(self, new: Heads) -> None:
        """Write one row of each sequence into the slots that the table has opened."""
        for stored, rows in self._quantized(new).items():
            for part, row in self.table.targets:
                into = self._slabs[part.slab][stored]
                into[part.places, :, row] = rows[part.sequences, :, 0]

    def write_many(self, new: Heads, first: int = 0) -> None:
        """Write the rows of slots first, first + 1, ...; those that were given back are dropped.

        There must be pages for them that nobody else reads.
        """
        size, end = self.table.size, first + new.shape[2]
        for column in filter(self.table.is_live, range(first // size, -(-end // size))):
            start = column * size
            into = slice(max(first - start, 0), min(end - start, size))
            piece = new[:, :, start + into.start - first : start + into.stop - first]
            for stored, rows in self._quantized(piece).items():
                self._put(stored, self.table.parts(column), into, rows)

    def tiles(
        self, first: int, end: int, kind: torch.dtype, *, most: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The rows of slots from `first` up to `end` in turn: (slot of the first, rows).

        Rows are (batch, heads, time, head_dim) of type `kind`, without a copy where a column lies
        in one piece and nothing is converted; otherwise at most `TILE` at a time are copied. Where
        sequences next to each other share a page there are fewer than `batch`, each once.
        ``most`` bounds the rows of a tile further.
        """
        slot, size = first, self.table.size
        while slot < end:
            column, row = divmod(slot, size)
            parts = self.table.parts(column)
            whole = DTYPES[self.format.name] == kind and _together(parts)
            rows = min(size - row, end - slot, size if whole else TILE, most or size)
            stretch = slice(row, row + rows)
            numbers = self._get("numbers", parts, stretch)
            scales = self._get("scales", parts, stretch) if self.format.is_quantized else None
            yield slot, dequantize(numbers, scales, kind)
            slot += rows

    def paged(self) -> PagePointers:
        """Where the rows lie."""
        like = self._slabs[0]["numbers"]
        return PagePointers(
            self._addresses("numbers"),
            self._addresses("scales") if self.format.is_quantized else None,
            rows=self.table.size,
            head_stride=like.stride(1),
            row_stride=like.stride(2),
        )

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        for slab in self._slabs:
            slab.update({stored: tensor.clone() for stored, tensor in slab.items()})
        self.table.version += 1

    def _addresses(self, stored: _Stored) -> Int[Tensor, "batch columns"]:
        """The address of each page of what is stored."""

        def address(home: tuple[int, int] | None) -> int:
            if home is None:
                return 0
            tensor = self._slabs[home[0]][stored]
            return tensor.data_ptr() + home[1] * tensor.stride(0) * tensor.element_size()

        found = [[address(home) for home in locations] for locations in self.table.locations()]
        return torch.tensor(found, dtype=torch.int64).reshape(self.table.batch, self.table.columns)

    def _quantized(self, rows: Heads) -> dict[_Stored, Tensor]:
        """The rows as they are stored."""
        numbers, scales = quantize(rows.detach(), self.format)
        stored: dict[_Stored, Tensor] = {"numbers": numbers}
        if scales is not None:
            stored["scales"] = scales
        return stored

    def _get(self, stored: _Stored, parts: list[PageRun], stretch: slice) -> Tensor:
        """This stretch of the pages, of all who read them."""
        pieces = [self._slabs[part.slab][stored][:, :, stretch][part.places] for part in parts]
        if len(parts) == 1:
            return pieces[0]
        whole = pieces[0].new_empty(sum(map(len, pieces)), *pieces[0].shape[1:])
        for part, piece in zip(parts, pieces, strict=True):
            whole[part.sequences] = piece
        return whole

    def _put(self, stored: _Stored, parts: list[PageRun], stretch: slice, new: Tensor) -> None:
        """Write this stretch of the pages."""
        for part in parts:
            self._slabs[part.slab][stored][part.places, :, stretch] = new[part.sequences]


def _together(parts: list[PageRun]) -> bool:
    """Whether the pages lie next to each other, in the order of the sequences."""
    return len(parts) == 1 and isinstance(parts[0].places, slice)
