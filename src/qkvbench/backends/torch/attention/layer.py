"""One attention layer, made from its plan. All variants run through it, by two ways held equal."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.backends.torch.attention import ops
from qkvbench.backends.torch.attention.ops import Heads
from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.attention.softmax import Rows, Scores
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.backends.torch.cache.kv_cache import (
    Cache,
    Keep,
    LayerCache,
    Maps,
    kept_rows,
    source_rows,
)
from qkvbench.backends.torch.cache.page_table import PageTable
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.cache.quantize import cache_format, rounding_error
from qkvbench.backends.torch.kernels.decode import decode_kernel
from qkvbench.backends.torch.kernels.linear import Linear, product
from qkvbench.cost import CacheFormat
from qkvbench.model import Learned, NoPosition, Position, Sinusoidal
from qkvbench.variant import (
    ROLES,
    Input,
    Op,
    Path,
    Plan,
    Role,
    Variant,
    crossed,
    keys_only,
    parse,
    resolve,
    sized,
)

Stream = Float[Tensor, "batch time d_model"]
SourceStream = Float[Tensor, "batch source_time d_model"]
Lengths = Int[Tensor, " batch"]
# The most that V may be off, as a share, where it is made from K alone: by the rounding of the rows
# times the condition number of the key matrix.
LOST = 0.01


class Attention(nn.Module):
    """Attention of any variant, a drop-in for (batch, time, d_model) -> the same.

    Where it `crosses`, Q is made from its input, K and V from a source.
    """

    def __init__(  # noqa: PLR0913 (a layer is all of these)
        self,
        variant: Variant | str,
        d_model: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position = NoPosition(),
        causal: bool = False,
        is_cross: bool = False,
        window: int | None = None,
    ) -> None:
        """The layer; ValueError where the variant cannot be built at these sizes."""
        super().__init__()
        if isinstance(position, Learned | Sinusoidal):
            raise ValueError(
                f"{position.kind.capitalize()} positions are added to a model's input, "
                "not in its attention."
            )
        if is_cross and (causal or window is not None or position != NoPosition()):
            raise ValueError(
                "Between two sequences there are no positions, no window and no causality."
            )
        variant = parse(variant) if isinstance(variant, str) else variant
        geometry = sized(d_model, heads, kv_heads, head_dim)
        self.plan = (
            crossed(variant, geometry) if is_cross else resolve(variant, geometry, position.turned)
        )
        self.turner = RotaryEmbedding(position, self.plan.geometry.head_dim)
        size = self.plan.geometry
        self.scores = Scores(self.plan.scores, position, size.heads, causal=causal, window=window)
        # All projections of an input in one matrix product; `split` names the rows.
        rows = sum(self.plan.matrix_rows.values())
        self.projection = Linear(d_model, rows) if rows else None
        self.rotation = nn.ParameterDict(
            {
                role: nn.Parameter(torch.zeros(count, size.head_dim * (size.head_dim - 1) // 2))
                for role, count in self.plan.rotated.items()
            }
        )
        self.up = nn.ParameterDict(
            {
                role: nn.Parameter(torch.zeros(count, size.head_dim, rank))
                for role, (count, rank) in self.plan.lifted.items()
            }
        )
        self.scale = nn.ParameterDict(
            {role: nn.Parameter(torch.ones(size.head_dim)) for role in self.plan.scaled}
        )
        self.o = Linear(size.heads * size.head_dim, d_model)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Lengths | None = None,
        source: SourceStream | None = None,
    ) -> Stream:
        """Attend over a whole sequence, expanded: make Q, K and V, then attend.

        With a cache that holds pages for it, what the plan keeps of the sequence is also written.
        `lengths` counts the leading positions of each sequence that are seen (of the source, where
        there is one); None is all.
        """
        made = self.project(x, source)
        maps = layer.maps if layer else self.maps()
        q, k, v = (self.make(self.plan.derivations[role], made, maps) for role in ROLES)
        if layer:
            for kept in layer.plan.cached:
                layer.rows[kept.name].write_many(self.make(kept.path, made, maps))
        seen = self.scores(q, k, v, lengths)
        return self.merge(self._follow(self.plan.output, seen, maps, self.turner))

    def step(self, x: Stream, cache: Cache, layer: LayerCache) -> Stream:
        """Decode one token, folded: over kept roots, with the fixed maps in the output.

        The cache is open for one more row.
        """
        made = self.project(x)
        turn = partial(self.turner.at, first=cache.longest, times=cache.lengths)
        for kept in layer.plan.cached:
            layer.rows[kept.name].write(self.make(kept.path, made, layer.maps, turn))
        query = self.fold(self.make(self.plan.derivations["q"], made, layer.maps, turn), layer)
        if layer.decode_kernel:
            seen = layer.decode_kernel(self._asked(query, layer), *cache.seen(layer)).view(
                query.shape
            )
        else:
            rows = torch.tensor([cache.longest], device=x.device)
            if cache.lengths is not None:
                rows = cache.lengths[:, None]
            stretch = (cache.first(layer), cache.longest + 1)
            seen = self._attend_roots(query, layer, rows, stretch)
        seen = self.unfold(seen, layer)
        seen = self._follow(self.plan.output, seen, layer.maps, turn)
        return self.merge(seen.to(x.dtype))

    def keep(
        self, source: SourceStream, lengths: Lengths | None, kind: CacheFormat | None = None
    ) -> LayerCache:
        """What there is to be kept of a source, in memory of its own; `lengths` of it are read.

        Rows are of type `kind`; None is the one in which they are made.
        """
        with torch.no_grad():
            made, maps = self._projected(source, "source"), self.maps()
            rows = {kept.name: self.make(kept.path, made, maps) for kept in self.plan.cached}
            computed = rows[self.plan.cached_value.name].dtype
            kept = source_rows(self.plan, rows, kind or cache_format(computed))
            return self._layer(self.plan, kept, maps, computed, lengths)

    def attend_to_cached_source(self, x: Stream, layer: LayerCache) -> Stream:
        """Attend over what is kept of a source, folded.

        Of each item of the source there may be several sequences in `x`, next to each other.
        """
        source = layer.rows[layer.plan.cached_value.name].table
        grouped = x.reshape(source.batch, -1, x.shape[-1])
        query = self.make(
            self.plan.derivations["q"], self._projected(grouped, "stream"), layer.maps
        )
        query = self.fold(query, layer)
        if layer.decode_kernel:
            end = source.size if layer.lengths is None else layer.lengths.tolist()
            seen = layer.decode_kernel(self._asked(query, layer), 0, end).view(query.shape)
        else:
            rows = torch.arange(grouped.shape[1], device=x.device)
            seen = self._attend_roots(query, layer, rows, (0, source.size), layer.lengths)
        return self.merge(self.unfold(seen, layer).to(x.dtype)).view_as(x)

    def project(self, x: Stream, source: SourceStream | None = None) -> dict[Path, Heads]:
        """The roots, cut into heads: an input times a matrix, or the input itself."""
        made = self._projected(x, "stream")
        return made if source is None else made | self._projected(source, "source")

    def _projected(self, x: Tensor, reads: Input) -> dict[Path, Heads]:
        """The roots that read this input, by one product with the rows of their matrices."""
        roots = [root for root in self.plan.roots if root.reads == reads]
        read = {root.matrix for root in roots}
        wanted = [name for name in self.plan.matrix_rows if name in read]
        parts: dict[str, Tensor] = {}
        if self.projection is not None and wanted:
            counts = [self.plan.matrix_rows[name] for name in wanted]
            # A slice of a whole is a copy in the backward pass.
            whole = len(wanted) == len(self.plan.matrix_rows)
            rows = self.projection(x) if whole else product(x, *self._rows_of(wanted))
            parts = dict(zip(wanted, rows.split(counts, dim=-1), strict=True))
        made = {root: parts[root.matrix] if root.matrix else x for root in roots}
        return {
            Path(root.name, ()): rows.unflatten(-1, (root.heads, root.width)).transpose(1, 2)
            for root, rows in made.items()
        }

    def _rows_of(self, wanted: list[str]) -> tuple[Tensor, Tensor]:
        """The rows of these matrices, which lie next to each other, and their offsets."""
        assert self.projection is not None
        ends = dict(
            zip(self.plan.matrix_rows, accumulate(self.plan.matrix_rows.values()), strict=True)
        )
        rows = slice(ends[wanted[0]] - self.plan.matrix_rows[wanted[0]], ends[wanted[-1]])
        return self.projection.weight[rows], self.projection.bias[rows]

    def make(
        self,
        path: Path,
        made: dict[Path, Heads],
        maps: Maps,
        turn: Callable[..., Heads] | None = None,
    ) -> Heads:
        """The tensor at the end of `path`. What two paths have in common is made once.

        Positions come last in the path of Q or K: V may be the same tensor as K, and V is not
        turned.
        """
        follow = partial(self._follow, maps=maps, turn=turn or self.turner)
        return ops.make(path, made, follow)

    def _follow(
        self, operations: tuple[Op, ...], rows: Heads, maps: Maps, turn: Callable[..., Heads]
    ) -> Heads:
        """The rows after these operations."""
        kv_heads = self.plan.geometry.kv_heads
        return ops.apply(operations, rows, maps, self.scale.__getitem__, turn, kv_heads=kv_heads)

    def maps(self) -> dict[Role, Float[Tensor, "_heads _to _width"]]:
        """The learned maps of heads: up-projections, and rotations as orthogonal matrices."""
        head_dim = self.plan.geometry.head_dim
        maps: dict[Role, Tensor] = {role: self.up[role] for role in self.plan.lifted}
        for role in self.plan.rotated:
            maps[role] = ops.rotation(self.rotation[role], head_dim)
        return maps

    def fold(self, query: Heads, layer: LayerCache) -> Heads:
        """Queries whose products with kept rows are those of `query` with K."""
        return ops.absorb_into_query(
            query, layer.plan.absorbed_by_query, layer.maps, self.scale.__getitem__
        )

    def unfold(self, seen: Heads, layer: LayerCache) -> Heads:
        """What attending over V would have given, from what attending over its kept root gave."""
        seen = ops.absorb_into_output(seen, layer.plan.absorbed_by_output, layer.maps)
        return seen if layer.offset is None else seen + layer.offset.to(seen.dtype)

    def merge(self, seen: Heads) -> Stream:
        """The output projection over all heads together."""
        return self.o(seen.transpose(1, 2).flatten(2))

    def split(self) -> dict[str, Tensor]:
        """Views of the weights under the names that all backends share."""
        named: dict[str, Tensor] = {"o.weight": self.o.weight, "o.bias": self.o.bias}
        if self.projection is not None:
            matrices = self.plan.matrix_rows
            for part in ("weight", "bias"):
                pieces = getattr(self.projection, part).split(list(matrices.values()))
                for name, piece in zip(matrices, pieces, strict=True):
                    named[f"{name}.{part}"] = piece
        for role, numbers in self.rotation.items():
            named[f"{role}.rotation"] = numbers
        for role, numbers in self.up.items():
            named[f"{role}.up"] = numbers
        for role, numbers in self.scale.items():
            named[f"{role}.scale"] = numbers
        for part, numbers in self.scores.correction.items():
            named[f"correction.{part}"] = numbers
        return named

    def new_cache(self, table: PageTable, kind: CacheFormat, keep: Keep = "roots") -> LayerCache:
        """An empty cache for this layer, in rows of type `kind`.

        ValueError, with the reason, where it cannot keep that.
        """
        with torch.no_grad():
            plan, maps, offset = self.plan, self.maps(), None
            if keep == "keys":
                plan = keys_only(plan)
                maps["v"], offset = self._value_from_key(kind)
            layer = self._layer(plan, kept_rows(plan, table, kind), maps, self.o.weight.dtype)
            layer.offset = offset
            return layer

    def _value_from_key(self, kind: CacheFormat) -> tuple[Tensor, Tensor]:
        """The map and the offset by which V is made from all heads of K, by the inverse of W_k.

        V's relative error is that of the stored K times the condition number of W_k, at most.
        """
        size, named = self.plan.geometry, self.split()
        root = {role: self.plan.derivations[role].root for role in ("k", "v")}
        key, value = (named[f"{root[role]}.weight"].double() for role in ("k", "v"))
        sizes = torch.linalg.svdvals(key)
        condition = (sizes[0] / sizes[-1]).item()
        rounding = max(rounding_error(kind), torch.finfo(named["o.weight"].dtype).eps / 2)
        if not condition * rounding <= LOST:
            raise ValueError(
                f"the condition number of its key matrix is {condition:.3g}, and {kind.name} rows "
                f"bear {LOST / rounding:.3g}"
            )
        mapped = torch.linalg.solve(key, value, left=False)
        bias = {role: named[f"{root[role]}.bias"].double() for role in ("k", "v")}
        offset = (bias["v"] - mapped @ bias["k"]).view(size.kv_heads, 1, size.head_dim)
        of_each = offset.repeat_interleave(size.heads // size.kv_heads, dim=0)
        like = named["o.weight"].dtype
        return mapped.unflatten(0, (size.kv_heads, -1)).to(like), of_each.to(like)

    def _layer(
        self,
        plan: Plan,
        rows: dict[str, PagedTensor],
        maps: Maps,
        computed: torch.dtype,
        lengths: Lengths | None = None,
    ) -> LayerCache:
        """What this layer keeps in `rows`."""
        kernel = decode_kernel(plan, self.scores, self.turner, self.scale, rows, computed)
        return LayerCache(
            rows, maps, computed, lengths, None, self.scores.window, kernel, decode_plan=plan
        )

    def _attend_roots(
        self,
        query: Heads,
        layer: LayerCache,
        rows: Rows,
        stretch: tuple[int, int],
        lengths: Lengths | None = None,
    ) -> Heads:
        """softmax(q·k)·root over a stretch of kept rows, each group of heads over its own root.

        The queries are at the positions `rows`. Neither K nor the kept rows are ever made whole.
        """
        first, end = stretch
        batch, heads, time, _ = query.shape
        kept, kind = layer.plan.cached_value, layer.computed
        asked = self._asked(query.to(kind), layer)
        products = self._products(asked, layer, stretch).view(batch, heads, time, -1)
        shares = self.scores.shares(products, rows, lengths, first)
        shares = shares.to(kind).view(batch, kept.heads, -1, end - first)
        seen = [
            _times(shares[..., at - first : at - first + tile.shape[2]], tile)
            for at, tile in layer.rows[kept.name].tiles(first, end, kind)
        ]
        return _summed(seen).reshape(batch, heads, time, kept.width)

    def _asked(self, query: Heads, layer: LayerCache) -> Heads:
        """Scaled queries, those of one head of K together."""
        together = query.reshape(len(query), layer.plan.key_heads, -1, query.shape[-1])
        return together * self.plan.geometry.head_dim**-0.5

    def _products(self, query: Heads, layer: LayerCache, stretch: tuple[int, int]) -> Tensor:
        """Products of the queries with K, read from the kept rows; never all made at once."""
        ops, products = layer.plan.key_ops_on_read, []
        most = paged_tensor.TILE if ops else None
        kept = layer.rows[layer.plan.cached_key.name]
        for at, tile in kept.tiles(*stretch, query.dtype, most=most):
            keys = self._follow(ops, tile, layer.maps, partial(self.turner, first=at))
            products.append(_times(query, keys.mT))
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products by sequence and head, where sequences side by side may share the right."""
    if len(left) == len(right):
        return left @ right
    sharing = left.unflatten(0, (len(right), -1))
    found = sharing.transpose(1, 2).flatten(2, 3) @ right
    return found.unflatten(2, (sharing.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _summed(parts: list[Tensor]) -> Tensor:
    """The sum, in fp32 or better where there is more than one part."""
    total = parts[0]
    for part in parts[1:]:
        total = total.to(torch.promote_types(part.dtype, torch.float32)) + part
    return total
