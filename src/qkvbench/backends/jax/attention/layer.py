"""One attention layer, made from its plan. All variants run through it, by two ways held equal."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from qkvbench.backends.jax.attention.rope import Places, turned
from qkvbench.backends.jax.attention.softmax import Scores, products_of
from qkvbench.backends.jax.cache.kv_cache import (
    Count,
    LayerCache,
    Maps,
    empty_rows,
    places,
    with_row,
    with_rows,
)
from qkvbench.backends.jax.kernels.pallas_decode import DecodeKernel, decode_kernel
from qkvbench.backends.jax.models.weights import Shapes, Weights, part
from qkvbench.backends.jax.training.precision import upcast
from qkvbench.model import NoPosition, Position
from qkvbench.variant import (
    ROLES,
    ApplyRope,
    ApplyRotation,
    Cut,
    Geometry,
    Input,
    Join,
    Normalize,
    Op,
    Path,
    Plan,
    Role,
    Scale,
    UpProject,
    Variant,
    crossed,
    resolve,
)

Stream = Float[Array, "batch time d_model"]
SourceStream = Float[Array, "_batch source_time d_model"]
Lengths = Int[Array, " batch"]
# `_` is checked for nothing: roots of one plan may differ in heads and, across, in time.
Heads = Float[Array, "batch _heads _time _width"]
# Turns rows by their positions; `back` undoes it.
Turns = Callable[..., Heads]

# Below the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Attention:
    """Attention of any variant over (batch, time, d_model): what it computes, without its weights.

    Where the plan `crosses`, Q is made from its input, K and V from a source.
    """

    plan: Plan
    position: Position
    scores: Scores
    kernel: DecodeKernel | None = None

    def shapes(self) -> Shapes:
        """The names of its weights and their shapes."""
        size = self.plan.geometry
        shapes: Shapes = {}
        for name, rows in self.plan.matrix_rows.items():
            shapes[f"{name}.weight"] = (rows, size.d_model)
            shapes[f"{name}.bias"] = (rows,)
        for role, heads in self.plan.rotated.items():
            shapes[f"{role}.rotation"] = (heads, size.head_dim * (size.head_dim - 1) // 2)
        for role, (heads, rank) in self.plan.lifted.items():
            shapes[f"{role}.up"] = (heads, size.head_dim, rank)
        for role in self.plan.scaled:
            shapes[f"{role}.scale"] = (size.head_dim,)
        shapes["o.weight"] = (size.d_model, size.heads * size.head_dim)
        shapes["o.bias"] = (size.d_model,)
        return shapes | self.scores.shapes()

    def __call__(
        self,
        weights: Weights,
        x: Stream,
        lengths: Lengths | None = None,
        source: SourceStream | None = None,
    ) -> Stream:
        """Attend over a whole sequence, expanded: make Q, K and V, then attend.

        `lengths` counts the leading positions of each sequence that are seen (of the source, where
        there is one); None is all.
        """
        return self._attended(
            weights, self.project(weights, x, source), self.maps(weights), lengths
        )

    def read(
        self, weights: Weights, x: Stream, layer: LayerCache, count: Count
    ) -> tuple[Stream, LayerCache]:
        """Attend over a whole prompt, and keep what the plan keeps of its `count` first tokens."""
        made = self.project(weights, x)
        after = self._attended(weights, made, layer.maps, None)
        turn = self._turns(x.shape[1])
        rows = {
            kept.name: with_rows(
                layer.rows[kept.name],
                self.make(weights, kept.path, made, layer.maps, turn),
                count,
            )
            for kept in self.plan.cached
        }
        return after, LayerCache(rows, layer.maps, layer.lengths, layer.cross)

    def step(
        self, weights: Weights, x: Stream, layer: LayerCache, count: Count, capacity: int
    ) -> tuple[Stream, LayerCache]:
        """Decode one token, folded: over kept roots, with the fixed maps in the output."""
        made = self.project(weights, x)
        at = count[..., None]
        turn = partial(turned, position=self.position, at=at, end=capacity)
        make = partial(self.make, weights, made=made, maps=layer.maps, turn=turn)
        rows = {
            kept.name: with_row(layer.rows[kept.name], make(kept.path), count)
            for kept in self.plan.cached
        }
        layer = LayerCache(rows, layer.maps, layer.lengths, layer.cross)
        slots = rows[self.plan.cached_value.name].shape[2]
        columns = places(count, slots)
        seen = self._attend_roots(
            weights, make(self.plan.derivations["q"]), layer, at, columns, capacity
        )
        seen = self._follow(weights, self.plan.output, seen, layer.maps, turn)
        return self.merge(weights, seen).astype(x.dtype), layer

    def keep(
        self, weights: Weights, source: SourceStream, lengths: Int[Array, " _items"] | None
    ) -> LayerCache:
        """What there is to be kept of a source; `lengths` of it are read."""
        made, maps = self._projected(weights, source, "source"), self.maps(weights)
        turn = self._turns(source.shape[1])
        rows = {
            kept.name: self.make(weights, kept.path, made, maps, turn) for kept in self.plan.cached
        }
        return LayerCache(rows, maps, lengths)

    def attend_to_cached_source(self, weights: Weights, x: Stream, layer: LayerCache) -> Stream:
        """Attend over what is kept of a source, folded.

        Of each item of the source there may be several sequences in `x`, next to each other.
        """
        items, _, size, _ = layer.rows[self.plan.cached_value.name].shape
        grouped = x.reshape(items, -1, x.shape[-1])
        time = grouped.shape[1]
        made = self._projected(weights, grouped, "stream")
        query = self.make(weights, self.plan.derivations["q"], made, layer.maps, self._turns(time))
        seen = self._attend_roots(
            weights, query, layer, np.arange(time), np.arange(size), max(time, size), layer.lengths
        )
        return self.merge(weights, seen).astype(x.dtype).reshape(x.shape)

    def new_cache(self, weights: Weights, batch: int, capacity: int) -> LayerCache:
        """An empty cache for this layer, in rows of the type of its products."""
        kind = weights["o.weight"].dtype
        rows = empty_rows(self.plan, batch, capacity, self.scores.window, kind)
        return LayerCache(rows, self.maps(weights))

    def project(
        self, weights: Weights, x: Stream, source: SourceStream | None = None
    ) -> dict[Path, Heads]:
        """The roots, cut into heads: an input times a matrix, or the input itself."""
        made = self._projected(weights, x, "stream")
        return made if source is None else made | self._projected(weights, source, "source")

    def make(
        self,
        weights: Weights,
        path: Path,
        made: dict[Path, Heads],
        maps: Maps,
        turn: Turns,
    ) -> Heads:
        """The tensor at the end of `path`. What two paths have in common is made once.

        Positions come last in the path of Q or K: V may be the same tensor as K, and V is not
        turned.
        """
        if path not in made:
            before = self.make(weights, Path(path.root, path.ops[:-1]), made, maps, turn)
            made[path] = self._follow(weights, path.ops[-1:], before, maps, turn)
        return made[path]

    def maps(self, weights: Weights) -> dict[Role, Float[Array, "_heads _to _width"]]:
        """The learned maps of heads: up-projections, and rotations as orthogonal matrices.

        These by Cayley, (1 - A/2)^-1 (1 + A/2), in fp32 at least, whatever the weights are in: the
        solver knows nothing less.
        """
        head_dim = self.plan.geometry.head_dim
        made: dict[Role, Array] = {role: weights[f"{role}.up"] for role in self.plan.lifted}
        for role in self.plan.rotated:
            numbers = upcast(weights[f"{role}.rotation"])
            row, column = np.triu_indices(head_dim, 1)
            above = jnp.zeros((len(numbers), head_dim, head_dim), numbers.dtype)
            above = above.at[:, row, column].set(numbers)
            skew = above - jnp.swapaxes(above, 1, 2)
            one = jnp.eye(head_dim, dtype=numbers.dtype)
            made[role] = jnp.linalg.solve(one - skew / 2, one + skew / 2)
        return made

    def merge(self, weights: Weights, seen: Heads) -> Stream:
        """The output projection over all heads together."""
        batch, _, time, _ = seen.shape
        return linear(part(weights, "o"), jnp.swapaxes(seen, 1, 2).reshape(batch, time, -1))

    def _attended(
        self,
        weights: Weights,
        made: dict[Path, Heads],
        maps: Maps,
        lengths: Lengths | None,
    ) -> Stream:
        time = max(rows.shape[2] for rows in made.values())
        turn = self._turns(time)
        q, k, v = (
            self.make(weights, self.plan.derivations[role], made, maps, turn) for role in ROLES
        )
        seen = self.scores(weights, q, k, v, lengths)
        return self.merge(weights, self._follow(weights, self.plan.output, seen, maps, turn))

    def _turns(self, time: int) -> Turns:
        """Turns rows at the positions 0, 1, ..."""
        return partial(turned, position=self.position, at=np.arange(time), end=time)

    def _projected(self, weights: Weights, x: Array, reads: Input) -> dict[Path, Heads]:
        """The roots that read this input."""
        batch, time, _ = x.shape
        kind = weights["o.weight"].dtype
        made: dict[Path, Heads] = {}
        for root in self.plan.roots:
            if root.reads == reads:
                rows = linear(part(weights, root.matrix), x) if root.matrix else x.astype(kind)
                rows = rows.reshape(batch, time, root.heads, -1)
                made[Path(root.name, ())] = jnp.swapaxes(rows, 1, 2)
        return made

    def _follow(
        self, weights: Weights, ops: Iterable[Op], rows: Heads, maps: Maps, turn: Turns
    ) -> Heads:
        """The rows after these operations."""
        for op in ops:
            match op:
                case ApplyRotation():
                    rows = _rotated(rows, _matrix(op, maps))
                case UpProject(role):
                    rows = jnp.einsum("btr,hdr->bhtd", rows[:, 0], maps[role].astype(rows.dtype))
                case Normalize():
                    rows = _normalized(rows)
                case Scale(role):
                    rows = rows * weights[f"{role}.scale"].astype(rows.dtype)
                case ApplyRope(back):
                    rows = turn(rows, back=back)
                case Join() | Cut():
                    raise ValueError("JAX keeps no cache of K alone; the torch backend does.")
        return rows

    def _attend_roots(
        self,
        weights: Weights,
        query: Heads,
        layer: LayerCache,
        rows: Places,
        columns: Places,
        end: int,
        lengths: Lengths | None = None,
    ) -> Heads:
        """softmax(q·k)·root over kept rows, each group of heads over its own root, unfolded.

        The queries are at the positions `rows`, what is kept at `columns`, all before `end`.
        """
        query = self._folded(weights, query, layer.maps)
        batch, heads, time, width = query.shape
        kept, key_heads = self.plan.cached_value, self.plan.key_heads
        value, kind = layer.rows[kept.name], weights["o.weight"].dtype
        scaled = (query * self.plan.geometry.head_dim**-0.5).astype(kind)
        grouped = scaled.reshape(batch, key_heads, -1, width)
        if self.kernel is not None and time == 1 and lengths is None:
            count = jnp.broadcast_to(jnp.asarray(rows[..., 0] + 1, jnp.int32), batch)
            seen = self.kernel(grouped, value, count).reshape(query.shape).astype(kind)
            return self._unfolded(seen, layer.maps)
        turn = partial(turned, position=self.position, at=columns, end=end)
        keys = layer.rows[self.plan.cached_key.name].astype(kind)
        keys = self._follow(weights, self.plan.key_ops_on_read, keys, layer.maps, turn)
        products = products_of(grouped, keys).reshape(batch, heads, time, -1)
        shares = self.scores.shares(weights, products, rows, columns, end, lengths).astype(kind)
        seen = shares.reshape(batch, kept.heads, -1, value.shape[2]) @ value.astype(kind)
        return self._unfolded(seen.reshape(batch, heads, time, kept.width), layer.maps)

    def _folded(self, weights: Weights, query: Heads, maps: Maps) -> Heads:
        """Queries whose products with kept rows are those of `query` with K."""
        for op in reversed(self.plan.absorbed_by_query):
            match op:
                case ApplyRotation() | UpProject():
                    query = _mapped(query, jnp.swapaxes(_matrix(op, maps), 1, 2))
                case Scale(role):
                    query = query * weights[f"{role}.scale"].astype(query.dtype)
        return query

    def _unfolded(self, seen: Heads, maps: Maps) -> Heads:
        """What attending over V would have given, from what attending over its kept root gave."""
        for op in self.plan.absorbed_by_output:
            seen = _mapped(seen, _matrix(op, maps))
        return seen


def attention(
    variant: Variant,
    geometry: Geometry,
    position: Position = NoPosition(),
    *,
    causal: bool = False,
    is_cross: bool = False,
    window: int | None = None,
) -> Attention:
    """The layer of a variant; ValueError where it cannot be built at these sizes."""
    plan = crossed(variant, geometry) if is_cross else resolve(variant, geometry, position.turned)
    scores = Scores(plan.scores, position, plan.geometry.heads, causal, window)
    return Attention(plan, position, scores, decode_kernel(plan, scores, position))


def linear(weights: Weights, x: Array) -> Array:
    """A matrix times each vector, in the type of the matrix, and an offset where there is one."""
    matrix = weights["weight"]
    found = x.astype(matrix.dtype) @ matrix.T
    return found + weights["bias"] if "bias" in weights else found


def _rotated(rows: Heads, matrix: Float[Array, "_heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return jnp.einsum("bhtd,hed->bhte", rows, matrix.astype(rows.dtype))


def _mapped(rows: Heads, matrix: Float[Array, "kv_heads _to _width"]) -> Heads:
    """Every row of a query head times the matrix of its key/value head."""
    group = rows.shape[1] // len(matrix)
    return jnp.einsum("bhtr,hdr->bhtd", rows, jnp.repeat(matrix, group, axis=0).astype(rows.dtype))


def _normalized(rows: Heads) -> Heads:
    """Each head of each row at root mean square 1, computed in fp32 or better."""
    wide = upcast(rows)
    size = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide / jnp.sqrt(size + NORM_EPS)).astype(rows.dtype)


def _matrix(op: ApplyRotation | UpProject, maps: Maps) -> Float[Array, "_heads _to _width"]:
    back = isinstance(op, ApplyRotation) and op.back
    return jnp.swapaxes(maps[op.role], 1, 2) if back else maps[op.role]
