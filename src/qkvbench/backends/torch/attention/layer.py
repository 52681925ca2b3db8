"""One attention layer, made from its plan. All variants run through it, in two ways held equal."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.backends.torch.attention import ops
from qkvbench.backends.torch.attention.linear_attention import LinearAttention, RecurrentState
from qkvbench.backends.torch.attention.ops import Heads
from qkvbench.backends.torch.attention.rope import RotaryEmbedding
from qkvbench.backends.torch.attention.softmax import Rows, SoftmaxAttention, constant
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.backends.torch.cache.kv_cache import Cache, LayerCache, Maps, new_rows, source_rows
from qkvbench.backends.torch.cache.page_table import PageTable
from qkvbench.backends.torch.cache.paged_tensor import PagedTensor
from qkvbench.backends.torch.cache.quantize import cache_format
from qkvbench.backends.torch.kernels.decode import decode_kernel
from qkvbench.backends.torch.kernels.linear import Linear, product
from qkvbench.cost import CacheFormat
from qkvbench.model import NoPosition, Position, alibi_of, rope_of
from qkvbench.variant import (
    GATE,
    ROLES,
    ROPE_KEY,
    Derivation,
    Input,
    LogScale,
    Op,
    Plan,
    Role,
    Rotation,
    Variant,
    parse,
    resolve,
    sized,
    write,
)

Stream = Float[Tensor, "batch time d_model"]
SourceStream = Float[Tensor, "batch source_time d_model"]
Lengths = Int[Tensor, " batch"]
# Slots [first, end) of a cache.
Interval = tuple[int, int]


class Attention(nn.Module):
    """Attention of any variant, (batch, time, d_model) -> the same: everything is in its plan.

    In cross-attention Q is made from its input, K and V from a source.
    """

    def __init__(self, plan: Plan) -> None:
        """The layer, with weights that are not initialized."""
        super().__init__()
        self.plan = plan
        self.rope = RotaryEmbedding(plan.rope) if plan.rope else None
        self.softmax = SoftmaxAttention(plan)
        self.linear = LinearAttention(plan) if plan.linear else None
        # All projections of an input in one matrix product; `named_weights` splits the rows.
        rows = sum(plan.matrix_rows.values())
        width, biases = plan.geometry.d_model, plan.matrix_biases
        self.projection = Linear(width, rows, biases) if rows else None
        self.maps = nn.ParameterDict()
        for part, each in plan.maps.items():
            self.maps[part] = nn.Parameter(torch.zeros(each.shape))
            if isinstance(each.init, Rotation):
                # The identity, as a rotation whose numbers are zero.
                self.maps[part].data += torch.eye(each.shape[-1])
            elif part not in plan.rotated_roles:
                # As of a linear layer: products of a Q and a K of zeros would never learn.
                nn.init.uniform_(self.maps[part], -(each.shape[-1] ** -0.5), each.shape[-1] ** -0.5)
        # Learned scales and biases of heads; a name in a ParameterDict has no dot.
        self.vectors = nn.ParameterDict(
            {
                each.name.replace(".", "_"): nn.Parameter(constant(each))
                for each in plan.head_vectors
            }
        )
        self.o = Linear(plan.output_width, width, biases) if plan.output_projection else None
        # Of the dtype and on the device of the weights, also if there are none.
        self.like = torch.empty(0)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Lengths | None = None,
        source: SourceStream | None = None,
        made: dict[Derivation, Heads] | None = None,
    ) -> Stream:
        """Attend over a whole sequence, expanded: make Q, K and V, apply RoPE, attend.

        With a cache that has pages for it, the cached tensors of the sequence are written, too.
        `lengths` counts the leading positions of each sequence (of the source, in cross-attention)
        that are not padding; None is all. `made` are the roots of layers below, if K or V is read
        from one; what this layer makes is added to it.
        """
        made = {} if made is None else made
        made |= self.project(x, source)
        maps = layer.maps if layer else self.head_maps()
        q, k, v = (self.whole(role, made, maps) for role in ROLES)
        if layer:
            for tensor in self.plan.cached:
                layer.rows[tensor.name].write_many(self.make(tensor.derivation, made, maps))
        if self.linear:
            context = self.linear(q, k, v, made, lengths, layer.state if layer else None)
        else:
            q = self.scale_by_position(q, torch.arange(q.shape[2], device=q.device))
            context = self.softmax(q, k, v, lengths)
        return self.output(context, made, maps, self.rope)

    def step(
        self,
        x: Stream,
        cache: Cache,
        layer: LayerCache,
        made: dict[Derivation, Heads] | None = None,
        lends: tuple[Role, ...] = (),
    ) -> Stream:
        """Decode one token, absorbed: over cached roots, fixed maps in query and output.

        The cache is open for one more row; one of sequences of one length may be open for several,
        which are read together. `made` as in a whole pass; the token's K or V that layers above
        read, `lends`, is added to it.
        """
        made = {} if made is None else made
        made |= self.project(x)
        rope = self.rope and partial(self.rope.at, first=cache.longest, positions=cache.lengths)
        if self.linear and layer.state:
            q, k, v = (self.whole(role, made, layer.maps, rope) for role in ROLES)
            context = self.linear.step(q, k, v, made, layer.state)
            return self.output(context, made, layer.maps, rope)
        for tensor in self.plan.cached:
            row = self.make(tensor.derivation, made, layer.maps, rope)
            layer.rows[tensor.name].write(row)
        for role in lends:
            self.whole(role, made, layer.maps, rope)
        rows = torch.arange(cache.longest, cache.longest + x.shape[1], device=x.device)
        if cache.lengths is not None:
            rows = cache.lengths[:, None]
        queries = {
            name: self.scale_by_position(query, rows)
            for name, query in self._queries(made, layer, rope).items()
        }
        if layer.decode_kernel:
            (query,) = queries.values()
            grouped = self._grouped(query, self.plan.key_heads)
            context = layer.decode_kernel(grouped, *cache.visible(self.plan.mask))
            context = context.view(query.shape)
        else:
            intervals = cache.intervals(self.plan.mask)
            context = self._attend_cached(queries, layer, rows, intervals)
        context = self._absorb_into_output(context, layer)
        return self.output(context.to(x.dtype), made, layer.maps, rope)

    def cache_source(
        self, source: SourceStream, lengths: Lengths | None, format: CacheFormat | None = None
    ) -> LayerCache:
        """The cached tensors of a source, in memory of their own; `lengths` of it are no padding.

        Rows have this format; None is the dtype in which they are made.
        """
        with torch.no_grad():
            made, maps = self._project(source, "source"), self.head_maps()
            rows = {
                tensor.name: self.make(tensor.derivation, made, maps) for tensor in self.plan.cached
            }
            dtype = rows[self.plan.cached_value.name].dtype
            stored = source_rows(self.plan, rows, format or cache_format(dtype))
            return self._layer_cache(stored, maps, dtype, lengths)

    def attend_to_cached_source(self, x: Stream, layer: LayerCache) -> Stream:
        """Cross-attention over a cached source, absorbed.

        For each item of the source there may be several sequences in `x`, next to each other.
        """
        source = layer.rows[self.plan.cached_value.name].table
        grouped = x.reshape(source.batch, -1, x.shape[-1])
        made = self._project(grouped, "stream")
        queries = self._queries(made, layer)
        if layer.decode_kernel:
            (query,) = queries.values()
            end = source.size if layer.lengths is None else layer.lengths.tolist()
            grouped_query = self._grouped(query, self.plan.key_heads)
            context = layer.decode_kernel(grouped_query, 0, end).view(query.shape)
        else:
            rows = torch.arange(grouped.shape[1], device=x.device)
            context = self._attend_cached(queries, layer, rows, [(0, source.size)], layer.lengths)
        context = self._absorb_into_output(context, layer).to(x.dtype)
        return self.output(context, made, layer.maps).view_as(x)

    def project(self, x: Stream, source: SourceStream | None = None) -> dict[Derivation, Heads]:
        """The roots, cut into heads: an input times a matrix, or the input itself."""
        made = self._project(x, "stream")
        return made if source is None else made | self._project(source, "source")

    def make(
        self,
        derivation: Derivation,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Callable[..., Heads] | None = None,
    ) -> Heads:
        """The tensor at the end of a derivation. A prefix that two share is computed once.

        RoPE comes last in the derivation of Q or K: V may be the same tensor as K, and V gets none.
        """
        apply = partial(self._apply_ops, maps=maps, rope=rope or self.rope, made=made)
        return ops.make(derivation, made, apply)

    def whole(
        self,
        role: Role,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Callable[..., Heads] | None = None,
    ) -> Heads:
        """Q, K or V; Q and K with the part that alone gets RoPE.

        K of a layer below has it already.
        """
        content = self.make(self.plan.derivations[role], made, maps, rope)
        part = self.plan.rope_head
        if part is None or role == "v" or (role == "k" and self.plan.layers_below("k")):
            return content
        rope_part = self.make(part.query if role == "q" else part.key, made, maps, rope)
        return torch.cat([content, rope_part.expand(-1, content.shape[1], -1, -1)], dim=-1)

    def lent(self, roles: tuple[Role, ...], made: dict[Derivation, Heads]) -> dict[Role, Heads]:
        """K and V of a pass, for layers above; `made` is the layer's after the pass."""
        return {role: self.whole(role, made, {}) for role in roles}

    def head_maps(self) -> dict[str, Float[Tensor, "_heads _to _width"]]:
        """The learned maps of heads; rotations as orthogonal matrices."""
        rotated = self.plan.rotated_roles
        return {
            part: ops.rotation(numbers, self.plan.width(part)) if part in rotated else numbers
            for part, numbers in self.maps.items()
        }

    def output(
        self,
        context: Heads,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Callable[..., Heads] | None = None,
    ) -> Stream:
        """The output projection over all heads together, and everything that comes before it."""
        if self.plan.exclusive:
            value = self.make(self.plan.derivations["v"], made, maps, rope)
            context = ops.without_own_value(context, value)
        context = self._apply_ops(self.plan.output_ops, context, maps, rope)
        if self.plan.gate:
            context = context * made[Derivation(GATE, ())].sigmoid()
        context = self._apply_ops(self.plan.before_output, context, maps, None)
        rows = context.transpose(1, 2).flatten(2)  # (batch, time, heads * width)
        return rows if self.o is None else self.o(rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        self.like = fn(self.like)
        return super()._apply(fn, recurse)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that it can run: one."""
        return (self.plan,)

    def named_weights(self) -> dict[str, Tensor]:
        """Views of the weights under the names of the plan's parameters."""
        named: dict[str, Tensor] = {}
        if self.o is not None:
            named |= {f"o.{part}": getattr(self.o, part) for part in self._parts}
        if self.projection is not None:
            rows = self.plan.matrix_rows
            for part in self._parts:
                pieces = getattr(self.projection, part).split(list(rows.values()))
                named |= {f"{name}.{part}": piece for name, piece in zip(rows, pieces, strict=True)}
        named |= {each.name: self.maps[part] for part, each in self.plan.maps.items()}
        named |= {each.name: self.vector(each.name) for each in self.plan.head_vectors}
        learned = self.softmax.correction.items()
        named |= {f"correction.{part}": numbers for part, numbers in learned}
        return {each.name: named[each.name] for each in self.plan.parameters}

    def own_tensors(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each `nn.Parameter` by its torch name, made of tensors with the plan's names.

        The inverse of `named_weights`; gradients reach `named`.
        """
        own = {name: named[of] for name, of in self.shared_names().items()}
        if self.projection is not None:
            for part in self._parts:
                pieces = [named[f"{name}.{part}"] for name in self.plan.matrix_rows]
                own[f"projection.{part}"] = torch.cat(pieces)
        return own

    def vector(self, name: str) -> Tensor:
        """The learned scale or bias of heads under this name of the plan."""
        return self.vectors[name.replace(".", "_")]

    def shared_names(self) -> dict[str, str]:
        """The plan's name of each `nn.Parameter`, by its torch name; of fused ones the first."""
        names: dict[str, str] = {}
        if self.o is not None:
            names |= {f"o.{part}": f"o.{part}" for part in self._parts}
        if self.projection is not None:
            first = next(iter(self.plan.matrix_rows))
            names |= {f"projection.{part}": f"{first}.{part}" for part in self._parts}
        names |= {f"maps.{part}": each.name for part, each in self.plan.maps.items()}
        vectors = [each.name for each in self.plan.head_vectors]
        names |= {f"vectors.{name.replace('.', '_')}": name for name in vectors}
        learned = self.softmax.correction
        return names | {f"softmax.correction.{part}": f"correction.{part}" for part in learned}

    @property
    def _parts(self) -> tuple[str, ...]:
        """The tensors of each matrix of the layer."""
        return ("weight", "bias") if self.plan.matrix_biases else ("weight",)

    def new_cache(
        self, table: PageTable, format: CacheFormat, below: Mapping[Role, LayerCache]
    ) -> LayerCache:
        """An empty cache for this layer, in rows of this format.

        K and V that are read from layers below are in their caches.
        """
        with torch.no_grad():
            if state := self.plan.state:
                like = self.like
                kind = torch.promote_types(like.dtype, torch.float32)
                memories = RecurrentState(state, table.batch, kind, like.device)
                return LayerCache({}, self.head_maps(), like.dtype, state=memories)
            rows = new_rows(self.plan, table, format)
            return self._layer_cache(rows, self.head_maps(), self.like.dtype, below=below)

    def _project(self, x: Tensor, reads: Input) -> dict[Derivation, Heads]:
        """The roots that read this input, by one product with the rows of their matrices."""
        roots = [root for root in self.plan.roots if root.reads == reads]
        read = {root.matrix for root in roots}
        wanted = [name for name in self.plan.matrix_rows if name in read]
        parts: dict[str, Tensor] = {}
        if self.projection is not None and wanted:
            counts = [self.plan.matrix_rows[name] for name in wanted]
            # A slice of a whole matrix is a copy in the backward pass.
            whole = len(wanted) == len(self.plan.matrix_rows)
            rows = self.projection(x) if whole else product(x, *self._rows_of(wanted))
            parts = dict(zip(wanted, rows.split(counts, dim=-1), strict=True))
        made = {root: parts[root.matrix] if root.matrix else x for root in roots}
        # (batch, time, heads * width) -> (batch, heads, time, width)
        return {
            Derivation(root.name, ()): rows.unflatten(-1, (root.heads, root.width)).transpose(1, 2)
            for root, rows in made.items()
        }

    def _rows_of(self, wanted: list[str]) -> tuple[Tensor, Tensor | None]:
        """The rows of these matrices, and their biases; a view if they are adjacent."""
        assert self.projection is not None
        rows = self.plan.matrix_rows
        ends = dict(zip(rows, accumulate(rows.values()), strict=True))
        first, last = ends[wanted[0]] - rows[wanted[0]], ends[wanted[-1]]
        pieces = [slice(ends[name] - rows[name], ends[name]) for name in wanted]
        if last - first == sum(rows[name] for name in wanted):
            pieces = [slice(first, last)]

        def taken(numbers: Tensor) -> Tensor:
            parts = [numbers[each] for each in pieces]
            return torch.cat(parts) if parts[1:] else parts[0]

        bias = self.projection.bias if self.plan.matrix_biases else None
        return taken(self.projection.weight), None if bias is None else taken(bias)

    def _apply_ops(
        self,
        operations: tuple[Op, ...],
        rows: Heads,
        maps: Maps,
        rope: Callable[..., Heads] | None,
        made: Mapping[Derivation, Heads] = MappingProxyType({}),
    ) -> Heads:
        """The rows after these operations."""
        return ops.apply(operations, rows, maps, self.vector, rope, made)

    def _queries(
        self,
        made: dict[Derivation, Heads],
        layer: LayerCache,
        rope: Callable[..., Heads] | None = None,
    ) -> dict[str, Heads]:
        """The parts of Q by the cached tensor that each is multiplied with.

        K's fixed maps are absorbed: products with cached rows are those with K.
        """
        query = self.make(self.plan.derivations["q"], made, layer.maps, rope)
        absorbed, owner = self.plan.absorbed_by_query, layer.owner("k")
        query = ops.absorb_into_query(query, absorbed, owner.maps, owner.vector)
        queries = {self.plan.cached_key.name: query}
        if part := self.plan.rope_head:
            queries[ROPE_KEY] = self.make(part.query, made, layer.maps, rope)
        return queries

    def scale_by_position(self, query: Heads, rows: Rows) -> Heads:
        """Queries at these positions times a number that grows with the position."""
        if self.plan.log_scale is None:
            return query
        steps = self.plan.log_scale.steps(rows.to(torch.float64))
        factor = (1 + LogScale.STRENGTH * torch.log1p(steps)).to(query.dtype)
        return query * factor[..., None, :, None]

    def _absorb_into_output(self, context: Heads, layer: LayerCache) -> Heads:
        """The output of attention over V, from the output of attention over its cached root."""
        absorbed = self.plan.absorbed_by_output
        return ops.absorb_into_output(context, absorbed, layer.owner("v").maps)

    def _layer_cache(
        self,
        rows: dict[str, PagedTensor],
        maps: Maps,
        dtype: torch.dtype,
        lengths: Lengths | None = None,
        below: Mapping[Role, LayerCache] = MappingProxyType({}),
    ) -> LayerCache:
        """The cache of this layer over `rows`, with the kernel that can read what it reads."""
        products = _product_dtype(dtype, self.like.device)
        layer = LayerCache(rows, maps, products, lengths, vector=self.vector, below=below)
        of_key, of_value = layer.owner("k"), layer.owner("v")
        keys = of_key.rows[self.plan.cached_key.name]
        values = of_value.rows[self.plan.cached_value.name]
        kernel = decode_kernel(self.plan, self.rope, of_key.vector, keys, values, dtype)
        return replace(layer, decode_kernel=kernel)

    def _attend_cached(
        self,
        queries: dict[str, Heads],
        layer: LayerCache,
        rows: Rows,
        intervals: list[Interval],
        lengths: Lengths | None = None,
    ) -> Heads:
        """softmax(q·k)·root over intervals of slots, each group of heads over its own root.

        The queries are at the positions `rows`. Neither K nor the cached rows are ever made whole.
        """
        value, dtype = self.plan.cached_value, layer.dtype
        values = layer.owner("v").rows[value.name]
        products = _sum([self._products(*each, layer, intervals) for each in queries.items()])
        batch, heads, time, _ = products.shape
        columns = torch.cat([torch.arange(*each, device=rows.device) for each in intervals])
        end = intervals[-1][1]
        weights = self.softmax.attention_weights(products, rows, columns, end, lengths)
        # (batch, heads, time, slots) -> (batch, groups, heads of the group * time, slots)
        weights = weights.to(dtype).view(batch, value.heads, -1, columns.shape[0])
        context, offset = [], 0
        for interval in intervals:
            for _, tile in values.tiles(*interval, dtype):
                context.append(_matmul(weights[..., offset : offset + tile.shape[2]], tile))
                offset += tile.shape[2]
        return _sum(context).reshape(batch, heads, time, value.width)

    def _grouped(self, query: Heads, groups: int) -> Float[Tensor, "batch groups rows width"]:
        """Scaled queries, those of one head of K together."""
        together = query.reshape(query.shape[0], groups, -1, query.shape[-1])
        return together * self.plan.score_width**-0.5

    def _products(
        self, name: str, query: Heads, layer: LayerCache, intervals: list[Interval]
    ) -> Float[Tensor, "batch heads time slots"]:
        """Products of the queries with one cached tensor of K, tile by tile."""
        layer = layer.owner("k")
        content = name == self.plan.cached_key.name
        operations = self.plan.key_ops_on_read if content else ()
        most = paged_tensor.TILE if operations else None
        cached = layer.rows[name]
        groups = self.plan.key_heads if content else cached.heads
        grouped = self._grouped(query.to(layer.dtype), groups)
        products: list[Tensor] = []
        for interval in intervals:
            for at, tile in cached.tiles(*interval, layer.dtype, most=most):
                rope = self.rope and partial(self.rope, first=at)
                keys = ops.apply(operations, tile, layer.maps, layer.vector, rope)
                products.append(_matmul(grouped, keys.mT))
        joined = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return joined.view(*query.shape[:3], -1)


def attention(
    variant: Variant | str,
    d_model: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    position: Position = NoPosition(),
    causal: bool = False,
) -> Attention:
    """A layer of this variant and size, a drop-in for (batch, time, d_model) -> the same.

    Weights begin as those of `torch.nn.Linear` do. ValueError if the variant cannot be built at
    these sizes or reads a layer below, or if the positions are added to a model's input instead.
    """
    variant = parse(variant) if isinstance(variant, str) else variant
    if variant.reads_below:
        raise ValueError(
            f"A layer alone has none below, so {write(variant)} is only for layers of a model."
        )
    if position.added_to_input:
        raise ValueError(
            f"{position.kind.capitalize()} positions are added to a model's input, "
            "not in its attention."
        )
    geometry = sized(d_model, heads, kv_heads, head_dim)
    plan = resolve(
        variant,
        geometry,
        causal=causal,
        rope=rope_of(position, geometry.head_dim),
        alibi=alibi_of(position),
    )
    return Attention(plan)


def _product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of products with cached rows, if no kernel computes them.

    On a CPU fp32: there torch's products of bf16 rows take twice as long and more, while a tile of
    rows is converted once for all heads.
    """
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products by sequence and head; adjacent sequences may share the right factor."""
    # By `shape`: a `len` would make the number of sequences a constant of an exported graph.
    if left.shape[0] == right.shape[0]:
        return left @ right
    sharing = left.unflatten(0, (right.shape[0], -1))
    joined = sharing.transpose(1, 2).flatten(2, 3) @ right
    return joined.unflatten(2, (sharing.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _sum(parts: list[Tensor]) -> Tensor:
    """The sum, in fp32 or better if there is more than one part."""
    total = parts[0]
    for part in parts[1:]:
        total = total.to(torch.promote_types(part.dtype, torch.float32)) + part
    return total
