"""The cache of roots: for each layer the tensors that its plan keeps, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qkvbench.backends.torch.cache.page_table import Growing, PageTable, Reserved, Storage
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.cache.quantize import Heads
from qkvbench.backends.torch.kernels.decode import DecodeKernel
from qkvbench.cost import CacheFormat
from qkvbench.variant import Plan, Role, write

# `_` is checked for nothing: an up-projection is not square.
Maps = Mapping[Role, Float[Tensor, "_heads _to _width"]]

# What a cache keeps of given weights: the roots of the plan, or K before positions alone, from
# which V is made too.
Keep = Literal["roots", "keys"]

# Rows that are drawn at a time where a cache is filled randomly.
DRAWN = 1024
# What a kernel is told of each page of a kept tensor: an address, and one more for scales.
ADDRESS_BYTES = 8


@dataclass
class LayerCache:
    """What one layer keeps: the rows of each kept tensor, by name; none without attention.

    ``maps`` are the layer's learned maps of heads, made once: weights stand still in decoding.
    ``computed`` is the type of products with the rows. ``cross`` are the rows of a source, which
    are all there before the first step; of those ``lengths`` says how many are read. ``window`` is
    how many slots are seen; None is all. ``one_pass`` attends to the rows, where it can.
    ``kept_by`` says what is kept and how it is read, which weights may allow in another way than
    the layer's own plan; ``offset`` is then added to what was attended.
    """

    rows: dict[str, PagedTensor]
    maps: Maps
    computed: torch.dtype
    lengths: Int[Tensor, " batch"] | None = None
    cross: "LayerCache | None" = None
    window: int | None = None
    decode_kernel: DecodeKernel | None = None
    offset: Float[Tensor, "heads one head_dim"] | None = None
    decode_plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """By which plan the layer is decoded."""
        assert self.decode_plan, "a layer without attention keeps nothing"
        return self.decode_plan


@dataclass(frozen=True)
class MadeFor:
    """What a cache must have in common with the network that uses it, layer by layer."""

    plans: tuple[Plan | None, ...]
    windows: tuple[int | None, ...]
    weights: torch.dtype
    device: torch.device

    def difference(self, cache: "MadeFor") -> str | None:
        """What a cache was made for instead; None where they agree."""
        if self == cache:
            return None
        if len(self.plans) != len(cache.plans):
            return f"{len(cache.plans)} layers, and this one has {len(self.plans)}"
        for layer, (own, other) in enumerate(zip(self.plans, cache.plans, strict=True)):
            if own != other:
                return f"{_told(other)} in layer {layer}, where this one has {_told(own)}"
        if self.windows != cache.windows:
            return f"windows of {cache.windows}, and this one has {self.windows}"
        return f"{cache.weights} on {cache.device}, and this one is {self.weights} on {self.device}"


@dataclass(frozen=True)
class Account:
    """What a cache takes, in bytes: rows that hold tokens, rows that hold none yet, and tables.

    ``rows`` has the scales with it, and counts what several sequences read once.
    """

    rows: int
    spare: int
    tables: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.rows + self.spare + self.tables


class Cache:
    """What a decoder remembers of `batch` sequences of at most `capacity` tokens.

    Every sequence begins in slot 0, so a slot is a position; sequences may differ in length.
    """

    def __init__(
        self,
        layers: list[LayerCache],
        tables: Mapping[int | None, PageTable],
        batch: int,
        capacity: int,
        kind: CacheFormat,
        made_for: MadeFor,
    ) -> None:
        """An empty cache over `layers`, by a table for each window; rows are of type `kind`."""
        self.layers = layers
        self.tables = tables
        self.kind = kind
        self.made_for = made_for
        self.capacity = capacity
        self.batch = batch
        self.longest = 0
        # How long each sequence is, where they differ: on the device, and known without asking it.
        self.lengths: Int[Tensor, " batch"] | None = None
        self._known: list[int] | None = None

    @property
    def shortest(self) -> int:
        """The tokens of the shortest sequence."""
        return self.longest if self._known is None else min(self._known)

    @property
    def bytes(self) -> int:
        """The unique storage behind all rows, in bytes, counted on the live tensors."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in self.tensors()
        }
        return sum(storages.values())

    def tensors(self) -> list[Tensor]:
        """Everything that lies in memory, rows of a source included."""
        return [tensor for pages in self._pages() for tensor in pages.tensors()]

    def account(self) -> Account:
        """What the bytes are for. Rows of a source all hold tokens, as many as were read."""
        lengths = self._lengths()
        rows = tables = 0
        for layer in self.layers:
            for part in (layer, layer.cross):
                for pages in part.rows.values() if part else ():
                    table = pages.table
                    held = lengths if part is layer else [table.size] * table.batch
                    rows += pages.row_bytes * table.used_rows(held)
                    addresses = 2 if pages.kind.scale_bytes else 1
                    tables += addresses * ADDRESS_BYTES * table.columns * table.batch
        return Account(rows, self.bytes - rows, tables)

    def reserve(self, tokens: int) -> None:
        """Refuse what does not fit."""
        if self.longest + tokens > self.capacity:
            raise ValueError(
                f"The cache holds {self.capacity} tokens; {self.longest} are in it and {tokens} "
                f"more do not fit. Make it with a larger capacity."
            )

    def clear(self) -> None:
        """Forget all tokens, of the sources nothing; no memory is given back."""
        for table in self.tables.values():
            table.clear()
        self.longest, self.lengths, self._known = 0, None, None

    def begin(self, tokens: int, lengths: Int[Tensor, " batch"] | None) -> None:
        """Have pages for prompts of `tokens`, or of `lengths`; layers write their rows.

        What a window will not show again gets none.
        """
        self.longest = tokens
        self.lengths = lengths
        self._known = None if lengths is None else lengths.tolist()
        for window, table in self.tables.items():
            table.ensure_pages(_first_seen(self.shortest - 1, window), tokens)

    def open(self) -> None:
        """Prepare to append a row of each sequence in every layer."""
        self.reserve(1)
        for window, table in self.tables.items():
            table.ensure_pages(_first_seen(self.shortest, window), self.longest + 1)
            table.begin_append(self.longest if self._known is None else self._known)

    def advance(self) -> None:
        """Note that every sequence has one token more."""
        self._shift(1)

    def rollback(self, tokens: int) -> None:
        """Forget the last `tokens` of every sequence: all is as if they had never been read.

        ValueError where a sequence has fewer, or where a window has given back what would be seen.
        """
        if not 0 <= tokens <= self.shortest:
            raise ValueError(
                f"{tokens} tokens cannot be taken back: the shortest sequence in the cache has "
                f"{self.shortest}. Take from 0 to {self.shortest}."
            )
        for window, table in self.tables.items():
            held = table.first_live_column * table.size
            if window is not None and _first_seen(self.shortest - tokens, window) < held:
                most = max(self.shortest + 1 - window - held, 0)
                raise ValueError(
                    f"{tokens} tokens cannot be taken back: what a window of {window} would see "
                    f"then was given back. Take {most} at most, or make the cache with larger "
                    "pages."
                )
        self._shift(-tokens)

    def follow(self, parents: Int[Tensor, " sequences"]) -> None:
        """Each sequence goes on as its parent's; there may be more or fewer than before.

        Nothing is copied before somebody writes. What is kept of a source belongs to items, not to
        sequences, and is not touched.
        """
        known = parents.tolist()
        if known == list(range(self.batch)):
            return
        for table in self.tables.values():
            table.reorder(known)
        self.batch = len(known)
        if self.lengths is not None and self._known is not None:
            self.lengths = self.lengths[parents]
            self._known = [self._known[parent] for parent in known]

    def fill_randomly(self, tokens: int, seed: int) -> None:
        """Pretend that `tokens` were read: random rows, for measuring without a prefill."""
        self.reserve(tokens)
        self.begin(tokens, None)
        for layer in self.layers:
            for rows in layer.rows.values():
                _fill_randomly(rows, tokens, seed)

    def first(self, layer: LayerCache) -> int:
        """The first slot that the next token of any sequence sees in this layer."""
        return _first_seen(self.shortest, layer.window)

    def seen(self, layer: LayerCache) -> tuple[int | list[int], int | list[int]]:
        """The slots that the next token of each sequence sees, itself included: [first, end)."""
        if self._known is None:
            return self.first(layer), self.longest + 1
        first = [_first_seen(length, layer.window) for length in self._known]
        return first, [length + 1 for length in self._known]

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        for pages in self._pages():
            pages.move()

    def _pages(self) -> list[PagedTensor]:
        parts = [part for layer in self.layers for part in (layer, layer.cross) if part]
        return [rows for part in parts for rows in part.rows.values()]

    def _lengths(self) -> list[int]:
        return [self.longest] * self.batch if self._known is None else self._known

    def _shift(self, tokens: int) -> None:
        self.longest += tokens
        if self.lengths is not None and self._known is not None:
            self.lengths = self.lengths + tokens
            self._known = [length + tokens for length in self._known]


def new_table(batch: int, capacity: int, storage: Storage, device: torch.device) -> PageTable:
    """The table of `batch` sequences of at most `capacity` tokens."""
    match storage:
        case Reserved(page):
            size = page or max(capacity, 1)
            table = PageTable(batch, size, device)
            table.reserve(batch * -(-capacity // size))
        case Growing(page):
            table = PageTable(batch, page, device)
    return table


def free_bytes(device: torch.device) -> int:
    """The memory that is left on a device, as the system says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def kept_rows(plan: Plan, table: PageTable, kind: CacheFormat) -> dict[str, PagedTensor]:
    """Room for what `plan` keeps, in rows of type `kind`."""
    return {kept.name: PagedTensor(table, kept.heads, kept.width, kind) for kept in plan.cached}


def source_rows(plan: Plan, made: Mapping[str, Heads], kind: CacheFormat) -> dict[str, PagedTensor]:
    """What is kept of a source, one page for each of its items, in memory of its own."""
    items, _, time, _ = made[plan.cached_value.name].shape
    table = new_table(items, time, Reserved(), made[plan.cached_value.name].device)
    table.ensure_pages(0, time)
    kept = kept_rows(plan, table, kind)
    for name, rows in made.items():
        kept[name].write_many(rows)
    return kept


def _told(plan: Plan | None) -> str:
    if plan is None:
        return "no attention"
    size = plan.geometry
    return f"{write(plan.variant)} with {size.heads} heads of {size.head_dim}"


def _first_seen(slot: int, window: int | None) -> int:
    """The first slot that a token in `slot` sees."""
    return 0 if window is None else max(0, slot + 1 - window)


def _fill_randomly(rows: PagedTensor, tokens: int, seed: int) -> None:
    device = rows.table.device
    rng = torch.Generator(device).manual_seed(seed)
    for first in range(rows.table.first_live_column * rows.table.size, tokens, DRAWN):
        shape = (rows.table.batch, rows.heads, min(DRAWN, tokens - first), rows.head_dim)
        rows.write_many(torch.randn(shape, generator=rng, device=device), first)
