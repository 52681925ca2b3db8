"""One attention layer, made from its plan. All variants run through it, in two ways held equal."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, nn
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.linear_attention import MEMORY, LinearAttention
from qkvbench.backends.jax.attention.rope import Positions, apply_rope
from qkvbench.backends.jax.attention.softmax import SoftmaxAttention, products_of
from qkvbench.backends.jax.cache.kv_cache import (
    Count,
    LayerCache,
    Maps,
    empty_rows,
    slot_positions,
    with_row,
    with_rows,
)
from qkvbench.backends.jax.kernels.pallas_decode import DecodeKernel, decode_kernel
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.models.weights import part as part_of
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.variant import (
    GATE,
    ROLES,
    ROPE_KEY,
    ApplyMap,
    ApplyRope,
    Clamp,
    Derivation,
    DownProject,
    Input,
    LogScale,
    MakeZeros,
    Mix,
    Multiply,
    Normalize,
    Op,
    Plan,
    Role,
    Scale,
    Shift,
    Take,
    UpProject,
)

Stream = Float[Array, "batch time d_model"]
SourceStream = Float[Array, "_batch source_time d_model"]
Lengths = Int[Array, " batch"]
# `_` is checked for nothing: roots of one plan may differ in heads and, across, in time.
Heads = Float[Array, "batch _heads _time _width"]
# Applies RoPE to rows at their positions; `back` is the inverse.
Apply = Callable[..., Heads]

# The least length of a V, so that one of zeros has a direction: none.
TINY = 1e-12


class Owner(NamedTuple):
    """The layer whose rows are read as K or V in decoding: its weights and its cache."""

    weights: Weights
    layer: LayerCache


@dataclass(frozen=True)
class Attention:
    """Attention of any variant over (batch, time, d_model): a computation, without its weights.

    In cross-attention Q is made from its input, K and V from a source.
    """

    plan: Plan
    softmax: SoftmaxAttention
    kernel: DecodeKernel | None = None
    linear: LinearAttention | None = None

    @classmethod
    def of(cls, plan: Plan) -> "Attention":
        """The layer of a plan."""
        linear = LinearAttention(plan) if plan.linear else None
        kernel = None if linear else decode_kernel(plan)
        return cls(plan, SoftmaxAttention(plan), kernel, linear)

    def __call__(
        self,
        weights: Weights,
        x: Stream,
        lengths: Lengths | None = None,
        source: SourceStream | None = None,
        made: dict[Derivation, Heads] | None = None,
    ) -> Stream:
        """Attend over a whole sequence, expanded: make Q, K and V, apply RoPE, attend.

        `lengths` counts the leading positions of each sequence (of the source, in cross-attention)
        that are not padding; None is all. `made` are the roots of layers below, if K or V is read
        from one; what this layer makes is added to it.
        """
        made = {} if made is None else made
        made |= self.project(weights, x, source)
        return self._attend(weights, made, self.head_maps(weights), lengths)[0]

    def lent(self, roles: tuple[Role, ...], made: dict[Derivation, Heads]) -> dict[Role, Heads]:
        """K and V of a pass, for layers above; `made` is the layer's after the pass."""
        made_already: Maps = {}

        def no_rope(rows: Heads, *, back: bool = False) -> Heads:
            raise AssertionError("K and V are made")

        return {role: self.whole({}, role, made, made_already, no_rope) for role in roles}

    def whole(
        self,
        weights: Weights,
        role: Role,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Apply,
    ) -> Heads:
        """Q, K or V; Q and K with the part that alone gets RoPE.

        K of a layer below has it already.
        """
        content = self.make(weights, self.plan.derivations[role], made, maps, rope)
        part = self.plan.rope_head
        if part is None or role == "v" or (role == "k" and self.plan.layers_below("k")):
            return content
        own = part.query if role == "q" else part.key
        rope_part = self.make(weights, own, made, maps, rope)
        shape = (*content.shape[:3], part.width)
        return jnp.concatenate([content, jnp.broadcast_to(rope_part, shape)], axis=-1)

    def read(
        self,
        weights: Weights,
        x: Stream,
        layer: LayerCache,
        count: Count,
        made: dict[Derivation, Heads],
    ) -> tuple[Stream, LayerCache]:
        """Attend over a whole prompt, and cache its `count` first tokens; `made` as in a call."""
        made |= self.project(weights, x)
        if self.linear:
            # What a token behind the prompt would write must not be in the memory.
            after, memory = self._attend(weights, made, layer.maps, count)
            return after, replace(layer, rows={MEMORY: memory})
        after, _ = self._attend(weights, made, layer.maps, None)
        rope = self._rope(x.shape[1])
        rows = {
            tensor.name: with_rows(
                layer.rows[tensor.name],
                self.make(weights, tensor.derivation, made, layer.maps, rope),
                count,
                self.plan.mask,
            )
            for tensor in self.plan.cached
        }
        return after, LayerCache(rows, layer.maps, layer.lengths, layer.cross)

    def step(
        self,
        weights: Weights,
        x: Stream,
        layer: LayerCache,
        count: Count,
        capacity: int,
        below: Mapping[Role, Owner] = MappingProxyType({}),
        made: dict[Derivation, Heads] | None = None,
        lends: tuple[Role, ...] = (),
    ) -> tuple[Stream, LayerCache]:
        """Decode one token, absorbed: over cached roots, fixed maps in query and output.

        The roots, maps and scales of K or V are those of a layer `below`, if it is from there.
        `made` as in a call; the token's K or V that layers above read, `lends`, is added to it.
        """
        made = {} if made is None else made
        made |= self.project(weights, x)
        at = count[..., None]
        rope = partial(self.rotate, at=at, end=capacity)
        if self.linear:
            q, k, v = (self.whole(weights, role, made, layer.maps, rope) for role in ROLES)
            context, memory = self.linear.step(q, k, v, made, layer.rows[MEMORY])
            after = self.output(weights, context, made, layer.maps, rope)
            return after.astype(x.dtype), replace(layer, rows={MEMORY: memory})
        make = partial(self.make, weights, made=made, maps=layer.maps, rope=rope)
        rows = {
            tensor.name: with_row(
                layer.rows[tensor.name], make(tensor.derivation), count, self.plan.mask
            )
            for tensor in self.plan.cached
        }
        for role in lends:
            self.whole(weights, role, made, layer.maps, rope)
        layer = LayerCache(rows, layer.maps, layer.lengths, layer.cross)
        own = Owner(weights, layer)
        owners = below.get("k", own), below.get("v", own)
        slots = owners[1].layer.rows[self.plan.cached_value.name].shape[2]
        columns = slot_positions(count, slots, self.plan.mask)
        queries = self._queries(owners[0], make)
        context = self._attend_cached(weights, queries, owners, at, columns, capacity)
        after = self.output(weights, context, made, layer.maps, rope)
        return after.astype(x.dtype), layer

    def cache_source(
        self, weights: Weights, source: SourceStream, lengths: Int[Array, " _items"] | None
    ) -> LayerCache:
        """The cached tensors of a source; `lengths` of it are no padding."""
        made, maps = self._project(weights, source, "source"), self.head_maps(weights)
        rope = self._rope(source.shape[1])
        rows = {
            tensor.name: self.make(weights, tensor.derivation, made, maps, rope)
            for tensor in self.plan.cached
        }
        return LayerCache(rows, maps, lengths)

    def attend_to_cached_source(self, weights: Weights, x: Stream, layer: LayerCache) -> Stream:
        """Cross-attention over a cached source, absorbed.

        For each item of the source there may be several sequences in `x`, next to each other.
        """
        items, _, size, _ = layer.rows[self.plan.cached_value.name].shape
        grouped = x.reshape(items, -1, x.shape[-1])
        time = grouped.shape[1]
        made = self._project(weights, grouped, "stream")
        rope = self._rope(time)
        make = partial(self.make, weights, made=made, maps=layer.maps, rope=rope)
        owner, end = Owner(weights, layer), max(time, size)
        queries = self._queries(owner, make)
        places = np.arange(time), np.arange(size)
        context = self._attend_cached(weights, queries, (owner, owner), *places, end, layer.lengths)
        after = self.output(weights, context, made, layer.maps, rope)
        return after.astype(x.dtype).reshape(x.shape)

    def dtype(self, weights: Weights, like: Array | None = None) -> jnp.dtype:
        """The dtype of products: that of the matrices; without any, of `like`, or fp32."""
        products = (each.name for each in self.plan.parameters if each.dtype == "compute")
        if (first := next(products, None)) is not None:
            return weights[first].dtype
        return jnp.dtype(jnp.float32) if like is None else like.dtype

    def new_cache(self, weights: Weights, batch: int, capacity: int) -> LayerCache:
        """An empty cache for this layer, in rows of the compute dtype."""
        kind = self.dtype(weights)
        rows = empty_rows(self.plan, batch, capacity, kind)
        if state := self.plan.state:
            shape = (batch, state.heads, state.rows, state.width)
            rows = {MEMORY: jnp.zeros(shape, jnp.promote_types(kind, jnp.float32))}
        return LayerCache(rows, self.head_maps(weights))

    def project(
        self, weights: Weights, x: Stream, source: SourceStream | None = None
    ) -> dict[Derivation, Heads]:
        """The roots, cut into heads: an input times a matrix, or the input itself."""
        made = self._project(weights, x, "stream")
        return made if source is None else made | self._project(weights, source, "source")

    def make(
        self,
        weights: Weights,
        derivation: Derivation,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Apply,
    ) -> Heads:
        """The tensor at the end of a derivation. A prefix that two share is computed once.

        RoPE comes last in the derivation of Q or K: V may be the same tensor as K, and V gets none.
        """
        if derivation not in made:
            before = self.make(
                weights, Derivation(derivation.root, derivation.ops[:-1]), made, maps, rope
            )
            made[derivation] = self._apply_ops(
                weights, derivation.ops[-1:], before, maps, rope, made
            )
        return made[derivation]

    def head_maps(self, weights: Weights) -> dict[str, Float[Array, "_heads _to _width"]]:
        """The learned maps of heads; rotations as orthogonal matrices.

        Those by Cayley, (1 - A/2)^-1 (1 + A/2), in fp32 at least: the solver has nothing smaller.
        """
        found: dict[str, Array] = {}
        for part, each in self.plan.maps.items():
            numbers = weights[each.name]
            if part in self.plan.rotated_roles:
                numbers = upcast(numbers)
                head_dim = self.plan.width(part)
                row, column = np.triu_indices(head_dim, 1)
                above = jnp.zeros((len(numbers), head_dim, head_dim), numbers.dtype)
                above = above.at[:, row, column].set(numbers)
                skew = above - jnp.swapaxes(above, 1, 2)
                one = jnp.eye(head_dim, dtype=numbers.dtype)
                numbers = jnp.linalg.solve(one - skew / 2, one + skew / 2)
            found[part] = numbers
        return found

    def output(
        self,
        weights: Weights,
        context: Heads,
        made: dict[Derivation, Heads],
        maps: Maps,
        rope: Apply,
    ) -> Stream:
        """The output projection over all heads together, and everything that comes before it."""
        if self.plan.exclusive:
            value = self.make(weights, self.plan.derivations["v"], made, maps, rope)
            context = _without_own_value(context, value)
        context = self._apply_ops(weights, self.plan.output_ops, context, maps, rope)
        if self.plan.gate:
            context = context * nn.sigmoid(made[Derivation(GATE, ())])
        context = self._apply_ops(weights, self.plan.before_output, context, maps, rope)
        batch, _, time, _ = context.shape
        rows = jnp.swapaxes(context, 1, 2).reshape(batch, time, -1)
        return linear(part_of(weights, "o"), rows) if self.plan.output_projection else rows

    def _attend(
        self,
        weights: Weights,
        made: dict[Derivation, Heads],
        maps: Maps,
        lengths: Int[Array, "..."] | None,
    ) -> tuple[Stream, Array | None]:
        """The output over a whole sequence, and the memory of linear attention."""
        time, memory = max(rows.shape[2] for rows in made.values()), None
        rope = self._rope(time)
        q, k, v = (self.whole(weights, role, made, maps, rope) for role in ROLES)
        if self.linear:
            context, memory = self.linear(q, k, v, made, lengths)
        else:
            q = self.scale_by_position(q, np.arange(q.shape[2]))
            context = self.softmax(weights, q, k, v, lengths)
        return self.output(weights, context, made, maps, rope), memory

    def _rope(self, time: int) -> Apply:
        """RoPE at the positions 0, 1, ..."""
        return partial(self.rotate, at=np.arange(time), end=time)

    def rotate(self, rows: Heads, at: Positions, end: int, *, back: bool = False) -> Heads:
        """The rows at these positions, all before `end`, with RoPE applied."""
        assert self.plan.rope, "only a plan with RoPE applies it"
        return apply_rope(rows, self.plan.rope, at, end, back=back)

    def _project(self, weights: Weights, x: Array, reads: Input) -> dict[Derivation, Heads]:
        """The roots that read this input."""
        batch, time, _ = x.shape
        kind = self.dtype(weights, x)
        made: dict[Derivation, Heads] = {}
        for root in self.plan.roots:
            if root.reads == reads:
                rows = linear(part_of(weights, root.matrix), x) if root.matrix else x.astype(kind)
                rows = rows.reshape(batch, time, root.heads, -1)
                made[Derivation(root.name, ())] = jnp.swapaxes(rows, 1, 2)
        return made

    def _apply_ops(  # noqa: C901, PLR0912 - one case for each operation
        self,
        weights: Weights,
        ops: Iterable[Op],
        rows: Heads,
        maps: Maps,
        rope: Apply,
        made: Mapping[Derivation, Heads] = MappingProxyType({}),
    ) -> Heads:
        """The rows after these operations; `made` has what may be mixed into them."""
        for op in ops:
            match op:
                case ApplyMap():
                    rows = _map_rows(rows, _matrix(op, maps))
                case UpProject(part):
                    rows = _up_project(rows, maps[part])
                case DownProject(part, groups):
                    rows = _down_project(rows, maps[part], groups)
                case Take(width):
                    rows = rows[..., :width]
                case Multiply(by, width):
                    rows = jnp.where(np.arange(rows.shape[-1]) < width, by * rows, rows)
                case Clamp(most):
                    rows = jnp.clip(rows, -most, most)
                case Normalize():
                    rows = _normalize(rows, op)
                case Scale(part):
                    rows = rows * _of_heads(weights[f"{part}.scale"], rows)
                case Shift(part):
                    rows = rows + _of_heads(weights[f"{part}.shift"], rows)
                case Mix(root, part):
                    share = weights[f"{part}.mix"].astype(rows.dtype)
                    other = made[Derivation(root, ())].astype(rows.dtype)
                    rows = (1 - share) * rows + share * other
                case ApplyRope(back):
                    rows = rope(rows, back=back)
                case MakeZeros(heads, width):
                    rows = jnp.zeros((len(rows), heads, rows.shape[2], width), rows.dtype)
        return rows

    def _queries(self, owner: Owner, make: Callable[[Derivation], Heads]) -> dict[str, Heads]:
        """The parts of Q by the cached tensor that each is multiplied with.

        K's fixed maps are absorbed: products with cached rows are those with K.
        """
        query = make(self.plan.derivations["q"])
        query = self._absorb_into_query(owner.weights, query, owner.layer.maps)
        part = self.plan.rope_head
        rope_part = {ROPE_KEY: make(part.query)} if part else {}
        return {self.plan.cached_key.name: query} | rope_part

    def _attend_cached(
        self,
        weights: Weights,
        queries: dict[str, Heads],
        owners: tuple[Owner, Owner],
        rows: Positions,
        columns: Positions,
        end: int,
        lengths: Lengths | None = None,
    ) -> Heads:
        """softmax(q·k)·root over cached rows, each group of heads over its own root.

        The queries are at the positions `rows`, the cached rows of the `owners` of K and of V at
        `columns`, all before `end`.
        """
        (key_weights, layer), (_, of_value) = owners
        kept, key_heads = self.plan.cached_value, self.plan.key_heads
        value = of_value.rows[kept.name]
        kind = self.dtype(weights, value)
        queries = {name: self.scale_by_position(each, rows) for name, each in queries.items()}
        query = queries[self.plan.cached_key.name]
        batch, heads, time, _ = query.shape

        def grouped(query: Heads, groups: int) -> Heads:
            scaled = (query * self.plan.score_width**-0.5).astype(kind)
            return scaled.reshape(batch, groups, -1, query.shape[-1])

        if self.kernel is not None and time == 1 and lengths is None:
            count = jnp.broadcast_to(jnp.asarray(rows[..., 0] + 1, jnp.int32), batch)
            context = self.kernel(grouped(query, key_heads), value, count)
            context = context.reshape(query.shape).astype(kind)
            return self._absorb_into_output(context, of_value.maps)
        rope = partial(self.rotate, at=columns, end=end)
        keys = layer.rows[self.plan.cached_key.name].astype(kind)
        keys = self._apply_ops(key_weights, self.plan.key_ops_on_read, keys, layer.maps, rope)
        products = products_of(grouped(query, key_heads), keys).reshape(batch, heads, time, -1)
        if ROPE_KEY in queries:
            parts = layer.rows[ROPE_KEY].astype(kind)
            more = products_of(grouped(queries[ROPE_KEY], parts.shape[1]), parts)
            products = products + more.reshape(products.shape)
        probabilities = self.softmax.attention_weights(
            weights, products, rows, columns, end, lengths
        ).astype(kind)
        context = probabilities.reshape(batch, kept.heads, -1, value.shape[2]) @ value.astype(kind)
        context = context.reshape(batch, heads, time, kept.width)
        return self._absorb_into_output(context, of_value.maps)

    def scale_by_position(self, query: Heads, rows: Positions) -> Heads:
        """Queries at these positions times a number that grows with the position."""
        if self.plan.log_scale is None:
            return query
        steps = self.plan.log_scale.steps(rows)
        factor = 1 + LogScale.STRENGTH * jnp.log1p(jnp.asarray(steps, upcast(query).dtype))
        return query * factor[..., None, :, None].astype(query.dtype)

    def _absorb_into_query(self, weights: Weights, query: Heads, maps: Maps) -> Heads:
        """Queries whose products with cached rows are those of `query` with K."""
        for op in reversed(self.plan.absorbed_by_query):
            match op:
                case ApplyMap() | UpProject():
                    query = _map_heads(query, jnp.swapaxes(_matrix(op, maps), 1, 2))
                case Scale(part):
                    scale = _of_heads(weights[f"{part}.scale"], query)
                    groups = 1 if scale.ndim == 1 else query.shape[1] // len(scale)
                    query = query * jnp.repeat(scale, groups, axis=0)
        return query

    def _absorb_into_output(self, context: Heads, maps: Maps) -> Heads:
        """The output of attention over V, from the output of attention over its cached root."""
        for op in self.plan.absorbed_by_output:
            match op:
                case Take(width):
                    context = context[..., :width]
                case ApplyMap() | UpProject():
                    context = _map_heads(context, _matrix(op, maps))
        return context


def linear(weights: Weights, x: Array) -> Array:
    """A matrix times each vector, in the dtype of the matrix, and a bias if there is one."""
    matrix = weights["weight"]
    found = x.astype(matrix.dtype) @ matrix.T
    return found + weights["bias"] if "bias" in weights else found


def _map_rows(rows: Heads, matrix: Float[Array, "_heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return jnp.einsum("bhtd,hed->bhte", rows, matrix.astype(rows.dtype))


def _up_project(rows: Heads, matrix: Float[Array, "heads _to rank"]) -> Heads:
    """Heads from latents: one for all heads, or each for its share of them."""
    batch, latents, time, _ = rows.shape
    grouped = matrix.astype(rows.dtype).reshape(latents, -1, *matrix.shape[1:])
    made = jnp.einsum("bgtr,gndr->bgntd", rows, grouped)
    return made.reshape(batch, len(matrix), time, -1)


def _down_project(rows: Heads, matrix: Float[Array, "groups rank inputs"], groups: int) -> Heads:
    """The heads of each group, one after the other, times the group's matrix."""
    batch, _, time, width = rows.shape
    heads = matrix.astype(rows.dtype).reshape(groups, matrix.shape[1], -1, width)
    return jnp.einsum("bgntd,grnd->bgtr", rows.reshape(batch, groups, -1, time, width), heads)


def _map_heads(rows: Heads, matrix: Float[Array, "kv_heads _to _width"]) -> Heads:
    """Every row of a query head times the matrix of its key/value head."""
    group = rows.shape[1] // len(matrix)
    return jnp.einsum("bhtr,hdr->bhtd", rows, jnp.repeat(matrix, group, axis=0).astype(rows.dtype))


def _normalize(rows: Heads, norm: Normalize) -> Heads:
    """The norm of each head, or of all heads of a row together, in fp32 or better."""
    wide = upcast(rows)
    axes = (1, 3) if norm.over == "row" else -1
    if norm.kind == "layer":
        wide = wide - jnp.mean(wide, axis=axes, keepdims=True)
    size = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide / jnp.sqrt(size + norm.eps)).astype(rows.dtype)


def _without_own_value(context: Heads, value: Heads) -> Heads:
    """The output of each head without its part along the token's own V. arXiv:2603.09078."""
    value = jnp.repeat(value, context.shape[1] // value.shape[1], axis=1)
    # In fp16 the square of a small V is zero; the square root of a sum of zeros has no gradient.
    wide = upcast(value)
    squared = jnp.maximum(jnp.sum(jnp.square(wide), axis=-1, keepdims=True), TINY**2)
    own = jnp.sum(upcast(context) * wide, axis=-1, keepdims=True) / squared * wide
    return context - own.astype(context.dtype)


def _of_heads(vector: Array, rows: Heads) -> Array:
    """A vector for all heads, or one for each, ready to be combined with rows."""
    return (vector if vector.ndim == 1 else vector[:, None]).astype(rows.dtype)


def _matrix(op: ApplyMap | UpProject, maps: Maps) -> Float[Array, "_heads _to _width"]:
    if isinstance(op, UpProject):
        return maps[op.part]
    return jnp.swapaxes(maps[op.role], 1, 2) if op.back else maps[op.role]
