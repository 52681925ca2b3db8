"""One attention layer, made from its plan. All variants run through it, by two ways held equal."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.backends.torch.cache import Cache, LayerCache, Maps, layer_cache
from qkvbench.backends.torch.position import Turner
from qkvbench.backends.torch.scores import Scores
from qkvbench.model import Learned, NoPosition, Position, Sinusoidal
from qkvbench.variant import (
    ROLES,
    Normalize,
    Op,
    Path,
    Role,
    Rotate,
    Scale,
    Turn,
    Variant,
    parse,
    resolve,
    sized,
)

Stream = Float[Tensor, "batch time d_model"]
Lengths = Int[Tensor, " batch"]
# `_heads` is checked for nothing: roots of one plan may differ in it.
Heads = Float[Tensor, "batch _heads time head_dim"]

# Below the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6

# Rows of a shared root that are turned at a time when it is read as K: the turned copy stays
# this long, however long the cache is, and in the processor's own cache.
TILE = 256


class Attention(nn.Module):
    """Self-attention of any variant, a drop-in for (batch, time, d_model) -> the same."""

    def __init__(
        self,
        variant: Variant | str,
        d_model: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position = NoPosition(),
        causal: bool = False,
    ) -> None:
        """The layer; ValueError where the variant cannot be built at these sizes."""
        super().__init__()
        if isinstance(position, Learned | Sinusoidal):
            raise ValueError(
                f"{position.kind.capitalize()} positions are added to a model's input, "
                "not in its attention."
            )
        self.plan = resolve(
            parse(variant) if isinstance(variant, str) else variant,
            sized(d_model, heads, kv_heads, head_dim),
            position.turned,
        )
        self.turner = Turner(position, self.plan.geometry.head_dim)
        size = self.plan.geometry
        self.scores = Scores(self.plan.scores, position, size.heads, causal=causal)
        # All projections of the stream in one matrix product; `split` names the rows.
        rows = sum(root.heads for root in self.plan.projected) * size.head_dim
        self.projection = nn.Linear(d_model, rows) if rows else None
        self.rotation = nn.ParameterDict(
            {
                role: nn.Parameter(torch.zeros(count, size.head_dim * (size.head_dim - 1) // 2))
                for role, count in self.plan.rotated.items()
            }
        )
        self.scale = nn.ParameterDict(
            {role: nn.Parameter(torch.ones(size.head_dim)) for role in self.plan.scaled}
        )
        self.o = nn.Linear(size.heads * size.head_dim, d_model)

    def forward(
        self, x: Stream, layer: LayerCache | None = None, lengths: Lengths | None = None
    ) -> Stream:
        """Attend over a whole sequence, expanded: make Q, K and V, then attend.

        With an empty cache, what the plan keeps of the sequence is also written into it.
        `lengths` counts the leading positions of each sequence that are seen; None is all.
        """
        made = self.project(x)
        rotations = layer.rotations if layer else self.rotations()
        q, k, v = (self.make(self.plan.paths[role], made, rotations) for role in ROLES)
        if layer:
            for kept in self.plan.kept:
                layer.rows[kept.name][:, :, : x.shape[1]] = self.make(kept.path, made, rotations)
        seen = self.scores(q, k, v, lengths)
        return self.merge(self._follow(self.plan.output, seen, rotations, self.turner))

    def step(self, x: Stream, cache: Cache, layer: LayerCache) -> Stream:
        """Decode one token, folded: over kept roots, with the fixed maps in the output."""
        made = self.project(x)
        turn = partial(self.turner.at, first=cache.longest, times=cache.lengths)
        for kept in self.plan.kept:
            cache.append(layer, kept.name, self.make(kept.path, made, layer.rotations, turn))
        query = self.make(self.plan.paths["q"], made, layer.rotations, turn)
        seen = self.unfold(self._attend_roots(query, cache, layer), layer.rotations)
        seen = self._follow(self.plan.output, seen, layer.rotations, turn)
        return self.merge(seen.to(x.dtype))

    def project(self, x: Stream) -> dict[Path, Heads]:
        """The roots, cut into heads: the stream times a matrix, or the stream itself."""
        batch, time, _ = x.shape
        head_dim = self.plan.geometry.head_dim
        counts = [root.heads for root in self.plan.projected]
        parts: Iterator[Tensor] = iter(())
        if self.projection is not None:
            rows = self.projection(x).view(batch, time, sum(counts), head_dim)
            parts = iter(rows.transpose(1, 2).split(counts, dim=1))
        return {
            Path(root.name, ()): next(parts)
            if root.projected
            else x.reshape(batch, time, root.heads, head_dim).transpose(1, 2)
            for root in self.plan.roots
        }

    def make(
        self,
        path: Path,
        made: dict[Path, Heads],
        rotations: Maps,
        turn: Callable[..., Heads] | None = None,
    ) -> Heads:
        """The tensor at the end of `path`. What two paths have in common is made once.

        Positions come last in the path of Q or K: V may be the same tensor as K, and V is not
        turned.
        """
        if path not in made:
            before = self.make(Path(path.root, path.ops[:-1]), made, rotations, turn)
            made[path] = self._follow(path.ops[-1:], before, rotations, turn or self.turner)
        return made[path]

    def _follow(
        self, ops: tuple[Op, ...], rows: Heads, rotations: Maps, turn: Callable[..., Heads]
    ) -> Heads:
        """The rows after these operations."""
        for op in ops:
            match op:
                case Rotate():
                    rows = _rotated(rows, _matrix(op, rotations))
                case Normalize():
                    rows = _normalized(rows)
                case Scale(role):
                    rows = rows * self.scale[role].to(rows.dtype)
                case Turn(back):
                    rows = turn(rows, back=back)
        return rows

    def rotations(self) -> dict[Role, Float[Tensor, "heads head_dim head_dim"]]:
        """The learned rotations as orthogonal matrices, by Cayley: (1 - A/2)^-1 (1 + A/2).

        In fp32 at least, whatever the weights are in: the solver knows nothing less.
        """
        head_dim = self.plan.geometry.head_dim
        made: dict[Role, Tensor] = {}
        for role in self.plan.rotated:
            numbers = self.rotation[role]
            numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
            row, column = torch.triu_indices(head_dim, head_dim, 1, device=numbers.device)
            above = numbers.new_zeros(len(numbers), head_dim, head_dim)
            above[:, row, column] = numbers
            skew = above - above.transpose(1, 2)
            one = torch.eye(head_dim, dtype=numbers.dtype, device=numbers.device)
            made[role] = torch.linalg.solve(one - skew / 2, one + skew / 2)
        return made

    def unfold(self, seen: Heads, rotations: Maps) -> Heads:
        """What attending over V would have given, from what attending over its kept root gave."""
        group = self.plan.geometry.heads // self.plan.kept_value.heads
        for op in self.plan.unfold:
            seen = _rotated(seen, _matrix(op, rotations).repeat_interleave(group, dim=0))
        return seen

    def merge(self, seen: Heads) -> Stream:
        """The output projection over all heads together."""
        return self.o(seen.transpose(1, 2).flatten(2))

    def split(self) -> dict[str, Tensor]:
        """Views of the weights under the names that all backends share."""
        named: dict[str, Tensor] = {"o.weight": self.o.weight, "o.bias": self.o.bias}
        if self.projection is not None:
            rows = [root.heads * self.plan.geometry.head_dim for root in self.plan.projected]
            for part in ("weight", "bias"):
                pieces = getattr(self.projection, part).split(rows)
                for root, piece in zip(self.plan.projected, pieces, strict=True):
                    named[f"{root.name}.{part}"] = piece
        for role, numbers in self.rotation.items():
            named[f"{role}.rotation"] = numbers
        for role, numbers in self.scale.items():
            named[f"{role}.scale"] = numbers
        for part, numbers in self.scores.correction.items():
            named[f"correction.{part}"] = numbers
        return named

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> LayerCache:
        """An empty cache for this layer, with the type and device of `like`."""
        with torch.no_grad():
            return layer_cache(self.plan, self.rotations(), batch, capacity, like)

    def _attend_roots(self, query: Heads, cache: Cache, layer: LayerCache) -> Heads:
        """softmax(q·k)·root over the kept rows, each group of query heads over its own root."""
        used = cache.longest + 1
        keys = layer.rows[self.plan.kept_key.name][:, :, :used]
        values = layer.rows[self.plan.kept_value.name][:, :, :used]
        batch, heads, _, head_dim = query.shape
        groups = keys.shape[1]
        query = query.reshape(batch, groups, heads // groups, head_dim).to(keys.dtype)
        products = self._products(query * head_dim**-0.5, keys, layer.rotations)
        rows = torch.tensor([cache.longest], device=query.device)
        if cache.lengths is not None:
            rows = cache.lengths[:, None]
        shares = self.scores.shares(products.view(batch, heads, 1, used), rows)
        shares = shares.to(values.dtype).view(batch, groups, heads // groups, used)
        return (shares @ values).reshape(batch, heads, 1, head_dim)

    def _products(self, query: Tensor, keys: Tensor, rotations: Maps) -> Tensor:
        """Products of the queries with K, read from the kept rows; never all made at once."""
        if not self.plan.read_key:
            return query @ keys.mT
        products = []
        for first in range(0, keys.shape[2], TILE):
            turn = partial(self.turner, first=first)
            tile = self._follow(
                self.plan.read_key, keys[:, :, first : first + TILE], rotations, turn
            )
            products.append(query @ tile.mT)
        return torch.cat(products, dim=-1)


def _rotated(rows: Heads, matrix: Float[Tensor, "heads head_dim head_dim"]) -> Heads:
    """Every row of a head times the head's matrix."""
    return rows @ matrix.to(rows.dtype).mT


def _normalized(rows: Heads) -> Heads:
    """Each head of each row at root mean square 1, computed in fp32 or better."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (exact * (exact.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()).to(rows.dtype)


def _matrix(op: Rotate, rotations: Maps) -> Float[Tensor, "heads head_dim head_dim"]:
    return rotations[op.role].mT if op.back else rotations[op.role]
