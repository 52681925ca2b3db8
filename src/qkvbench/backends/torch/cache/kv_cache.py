"""The key/value cache of a model: for each layer the tensors that its plan caches, nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qkvbench.backends.common.free_memory import free_bytes
from qkvbench.backends.torch.attention.linear_attention import RecurrentState
from qkvbench.backends.torch.cache.page_table import Growing, PageTable, Reserved, Storage
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.cache.quantize import Heads
from qkvbench.backends.torch.kernels.contract import DecodeKernel
from qkvbench.cost import CacheFormat
from qkvbench.variant import Mask, Plan, Role, write

# `_` is checked for nothing: an up-projection is not square.
Maps = Mapping[str, Float[Tensor, "_heads _to _width"]]

# Rows that are drawn at a time if a cache is filled randomly.
RANDOM_ROWS = 1024
# A kernel reads an address for each page of a cached tensor, and one more if it has scales.
ADDRESS_BYTES = 8


def _no_vector(name: str) -> Tensor:
    raise KeyError(name)


@dataclass
class LayerCache:
    """The cached tensors of one layer by name; none without attention.

    ``maps`` are the layer's learned maps of heads, made once, since weights are constant in
    decoding; ``vector`` gives its learned scales and biases of heads. ``dtype`` is that of products
    with the rows.
    ``cross`` holds the rows of a source, complete before the first step, of which ``lengths`` are
    no padding. ``below`` are the caches of the layers below whose rows are read in place of own
    ones, for K, V or both. ``decode_kernel`` attends to the rows, if a kernel can. Linear attention
    has a ``state`` and no rows.
    """

    rows: dict[str, PagedTensor]
    maps: Maps
    dtype: torch.dtype
    lengths: Int[Tensor, " batch"] | None = None
    cross: "LayerCache | None" = None
    vector: Callable[[str], Tensor] = _no_vector
    below: "Mapping[Role, LayerCache]" = field(default_factory=dict)
    decode_kernel: DecodeKernel | None = None
    state: RecurrentState | None = None

    def owner(self, role: Role) -> "LayerCache":
        """The cache with the rows that are read as K or V: itself, or that of a layer below."""
        return self.below.get(role, self)


@dataclass(frozen=True)
class MadeFor:
    """The properties that a cache shares with the network that uses it."""

    plans: tuple[Plan | None, ...]
    weights: torch.dtype
    device: torch.device

    def difference(self, cache: "MadeFor") -> str | None:
        """The property of `cache` that differs; None if they agree."""
        if self == cache:
            return None
        if len(self.plans) != len(cache.plans):
            return f"{len(cache.plans)} layers, and this one has {len(self.plans)}"
        for layer, (own, other) in enumerate(zip(self.plans, cache.plans, strict=True)):
            if own != other:
                return f"{_text(other)} in layer {layer}, and this one has {_text(own)}"
        return f"{cache.weights} on {cache.device}, and this one is {self.weights} on {self.device}"


@dataclass(frozen=True)
class Account:
    """The bytes of a cache: rows that hold tokens, rows that hold none yet, and page tables.

    ``rows`` includes scales; a page that several sequences share counts once.
    """

    rows: int
    spare: int
    tables: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.rows + self.spare + self.tables


class Cache:
    """The cache of `batch` sequences of at most `capacity` tokens.

    Every sequence begins in slot 0, so a slot is a position; sequences may differ in length.
    """

    def __init__(
        self,
        layers: list[LayerCache],
        tables: Mapping[Mask, PageTable],
        batch: int,
        capacity: int,
        format: CacheFormat,
        made_for: MadeFor,
    ) -> None:
        """An empty cache over `layers`, with one page table for all layers of a mask."""
        self.layers = layers
        self.tables = tables
        self.format = format
        self.made_for = made_for
        self.capacity = capacity
        self.batch = batch
        self.longest = 0
        # Length of each sequence if they differ: on the device, and on the host without a transfer.
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
        rows = [tensor for pages in self._pages() for tensor in pages.tensors()]
        return rows + [state.memory for state in self._states()]

    def account(self) -> Account:
        """How the bytes are used. Rows of a source all hold tokens."""
        lengths = self._lengths()
        rows = tables = 0
        for layer in self.layers:
            for part in (layer, layer.cross):
                for pages in part.rows.values() if part else ():
                    table = pages.table
                    held = lengths if part is layer else [table.size] * table.batch
                    rows += pages.row_bytes * table.used_rows(held)
                    addresses = 2 if pages.format.is_quantized else 1
                    tables += addresses * ADDRESS_BYTES * table.columns * table.batch
        rows += sum(state.memory.nbytes for state in self._states())
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
        for state in self._states():
            state.clear()
        self.longest, self.lengths, self._known = 0, None, None

    def begin(self, tokens: int, lengths: Int[Tensor, " batch"] | None) -> None:
        """Have pages for prompts of `tokens`, or of `lengths`; layers write their rows.

        Slots that the mask will not show again get none.
        """
        self.longest = tokens
        self.lengths = lengths
        self._known = None if lengths is None else lengths.tolist()
        for state in self._states():
            state.lengths = lengths
        for mask, table in self.tables.items():
            table.ensure_pages(mask.first_slot(self.shortest - 1), tokens)

    def open(self) -> None:
        """Prepare to append a row of each sequence in every layer."""
        self.reserve(1)
        for mask, table in self.tables.items():
            table.ensure_pages(mask.first_slot(self.shortest), self.longest + 1)
            table.begin_append(self.longest if self._known is None else self._known)

    def advance(self) -> None:
        """Note that every sequence has one token more."""
        self._shift(1)

    def memories(self) -> list[Tensor]:
        """The states of linear attention as they are now, for `rollback`; steps make new ones."""
        return [state.memory for state in self._states()]

    def rollback(self, tokens: int, memories: Sequence[Tensor] = ()) -> None:
        """Forget the last `tokens` of every sequence, as if they had never been read.

        `memories` are those of the cache before these tokens, if there is linear attention.
        ValueError if a sequence has fewer, or if pages that the next token would see are freed.
        """
        if not 0 <= tokens <= self.shortest:
            raise ValueError(
                f"{tokens} tokens cannot be rolled back: the shortest sequence in the cache has "
                f"{self.shortest}. Take from 0 to {self.shortest}."
            )
        if tokens and len(memories) != len(self._states()):
            raise ValueError(
                f"{tokens} tokens cannot be rolled back: linear attention adds all to one matrix, "
                "from which none is taken away again. Give the `memories()` of before."
            )
        for mask, table in self.tables.items():
            held = table.first_live_column * table.size
            if mask.first_slot(self.shortest - tokens) < held:
                ends = range(self.shortest - tokens, self.shortest + 1)
                first = next(end for end in ends if mask.first_slot(end) >= held or end == ends[-1])
                raise ValueError(
                    f"{tokens} tokens cannot be rolled back: pages that the next token would see "
                    f"then are freed. Take {self.shortest - first} at most, or make the cache with "
                    "larger pages."
                )
        for state, memory in zip(self._states(), memories, strict=False):
            state.memory = memory
        self._shift(-tokens)

    def reorder(self, parents: Int[Tensor, " sequences"]) -> None:
        """Each sequence continues the one of its parent; there may be more or fewer than before.

        Pages are copied on write. Rows of a source belong to items, not to sequences.
        """
        known = parents.tolist()
        if known == list(range(self.batch)):
            return
        for table in self.tables.values():
            table.reorder(known)
        for state in self._states():
            state.reorder(parents)
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
        for state in self._states():
            # Sums of weights are above 0.
            rng = torch.Generator(state.memory.device).manual_seed(seed)
            drawn = torch.rand(state.memory.shape, generator=rng, device=state.memory.device)
            state.memory = drawn.to(state.memory.dtype)

    def intervals(self, mask: Mask) -> list[tuple[int, int]]:
        """The slots that the next token of any sequence sees, itself included, in order."""
        end = self.longest + 1
        return [(part.start, part.stop) for part in mask.keys_of(self.shortest, end, end)]

    def visible(self, mask: Mask) -> tuple[int | Sequence[int], int | Sequence[int]]:
        """The slots [first, end) that the next token of each sequence sees, sinks left out."""
        if self._known is None:
            return mask.first_slot(self.longest), self.longest + 1
        return [mask.first_slot(length) for length in self._known], [n + 1 for n in self._known]

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        for pages in self._pages():
            pages.move()
        for state in self._states():
            state.memory = state.memory.clone()

    def _pages(self) -> list[PagedTensor]:
        parts = [part for layer in self.layers for part in (layer, layer.cross) if part]
        return [rows for part in parts for rows in part.rows.values()]

    def _states(self) -> list[RecurrentState]:
        return [layer.state for layer in self.layers if layer.state]

    def _lengths(self) -> list[int]:
        return [self.longest] * self.batch if self._known is None else self._known

    def _shift(self, tokens: int) -> None:
        self.longest += tokens
        if self.lengths is not None and self._known is not None:
            self.lengths = self.lengths + tokens
            self._known = [length + tokens for length in self._known]


def new_table(
    batch: int, capacity: int, storage: Storage, device: torch.device, sinks: int = 0
) -> PageTable:
    """The page table of `batch` sequences of at most `capacity` tokens."""
    match storage:
        case Reserved(page):
            size = page or max(capacity, 1)
            table = PageTable(batch, size, device, sinks)
            table.reserve(batch * -(-capacity // size))
        case Growing(page):
            table = PageTable(batch, page, device, sinks)
    return table


def free_bytes_of(device: torch.device) -> int:
    """The memory that is left on a device, as the system says."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def new_rows(plan: Plan, table: PageTable, format: CacheFormat) -> dict[str, PagedTensor]:
    """Storage for the cached tensors of a plan."""
    return {
        tensor.name: PagedTensor(table, tensor.heads, tensor.width, format)
        for tensor in plan.cached
    }


def source_rows(
    plan: Plan, made: Mapping[str, Heads], format: CacheFormat
) -> dict[str, PagedTensor]:
    """The cached tensors of a source, one page for each of its items, in memory of their own."""
    items, _, time, _ = made[plan.cached_value.name].shape
    table = new_table(items, time, Reserved(), made[plan.cached_value.name].device)
    table.ensure_pages(0, time)
    stored = new_rows(plan, table, format)
    for name, rows in made.items():
        stored[name].write_many(rows)
    return stored


def _text(plan: Plan | None) -> str:
    if plan is None:
        return "no attention"
    size = plan.geometry
    return f"{write(plan.variant)} with {size.heads} heads of {size.head_dim}"


def _fill_randomly(rows: PagedTensor, tokens: int, seed: int) -> None:
    device = rows.table.device
    rng = torch.Generator(device).manual_seed(seed)
    for first in range(rows.table.first_live_column * rows.table.size, tokens, RANDOM_ROWS):
        shape = (rows.table.batch, rows.heads, min(RANDOM_ROWS, tokens - first), rows.head_dim)
        rows.write_many(torch.randn(shape, generator=rng, device=device), first)
