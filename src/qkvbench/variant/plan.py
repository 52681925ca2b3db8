"""A variant at a size: which matrices exist, how each role is made, what a cache keeps.

Everything that computes, counts or stores attention reads a plan, and nothing else about a variant.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypedDict

from qkvbench.variant.notation import write
from qkvbench.variant.spec import (
    ROLES,
    Latent,
    LearnedRotation,
    Own,
    Role,
    Same,
    Scores,
    Source,
    Stream,
    Variant,
)


@dataclass(frozen=True)
class Geometry:
    """The sizes of one attention layer. `sized` fills in what is left out."""

    d_model: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        """Refuse sizes that no attention layer has."""
        sizes = (self.d_model, self.heads, self.kv_heads, self.head_dim)
        if min(sizes) < 1:
            raise ValueError(f"Sizes of attention start at 1; here they are {sizes}.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} query heads cannot be divided among {self.kv_heads} key/value "
                f"heads; take one of {_divisors(self.heads)}."
            )


def sized(
    d_model: int, heads: int, kv_heads: int | None = None, head_dim: int | None = None
) -> Geometry:
    """The geometry with the usual rest: as many key/value heads, and heads that fill d_model."""
    if head_dim is None and (heads < 1 or d_model % heads):
        raise ValueError(f"d_model {d_model} cannot be divided into {heads} heads.")
    return Geometry(d_model, heads, kv_heads or heads, head_dim or d_model // heads)


@dataclass(frozen=True)
class ApplyRotation:
    """Turn each head by the learned rotation of `role`; `back` is the inverse."""

    role: Role
    back: bool = False


@dataclass(frozen=True)
class UpProject:
    """Make heads from the latent, by the learned up-projection of `role`; nothing is added."""

    role: Role


@dataclass(frozen=True)
class Normalize:
    """Bring each head of each row to root mean square 1; nothing is learned."""


@dataclass(frozen=True)
class Scale:
    """Multiply the coordinates of every head by the learned numbers of `role`."""

    role: Role


@dataclass(frozen=True)
class ApplyRope:
    """Turn each row by its position, as the model's position scheme says; `back` undoes it."""

    back: bool = False


@dataclass(frozen=True)
class Join:
    """Lay the heads of a row side by side, as one."""


@dataclass(frozen=True)
class Cut:
    """Cut a row that was joined into the key/value heads again."""


Op = ApplyRotation | UpProject | Normalize | Scale | ApplyRope | Join | Cut
# What is the same linear map at every position, so that it can go into the query or the output.
Fixed = ApplyRotation | UpProject | Scale

# The name of the latent, which is a root, and of its matrix.
LATENT = "c"


# What a layer reads: the stream it belongs to, and in cross-attention that of another sequence.
Input = Literal["stream", "source"]


@dataclass(frozen=True)
class Root:
    """A tensor that the sources name: one matrix times an input, or the input cut into heads.

    Each head has `width` numbers; a latent is one head. ``matrix`` names the weights; None where
    there are none.
    """

    name: str
    heads: int
    width: int
    matrix: str | None
    reads: Input = "stream"


@dataclass(frozen=True)
class Path:
    """How a tensor is made: the operations on a root, in order."""

    root: str
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class CachedTensor:
    """One tensor in the cache for each past token, and how a new row of it is made."""

    name: str
    heads: int
    width: int
    path: Path


@dataclass(frozen=True)
class Plan:
    """A variant resolved at a geometry, for the roles that the positions turn.

    ``paths`` make Q, K and V from the roots (expanded). ``kept`` is what a cache holds;
    ``read_key`` turns the kept key rows into K, and ``unfold`` turns what was attended over the
    kept value rows into what attention over V itself would have given (folded). ``fold`` are the
    last operations on the way to K where they need not be done to any row: their transposes are
    done to the query, the last one first. ``output`` comes last in both ways.
    """

    variant: Variant
    geometry: Geometry
    roots: tuple[Root, ...]
    derivations: dict[Role, Path]
    cached: tuple[CachedTensor, ...]
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]
    absorbed_by_output: tuple[ApplyRotation | UpProject, ...]
    output: tuple[ApplyRope, ...]

    @property
    def scores(self) -> Scores:
        """What happens to the scores besides Q·K; between two sequences nothing by positions."""
        scores = self.variant.scores
        return replace(scores, correction=None, diagonal=True) if self.is_cross else scores

    @property
    def is_cross(self) -> bool:
        """Whether K and V are made from another sequence than Q."""
        return any(root.reads == "source" for root in self.roots)

    @property
    def projected(self) -> tuple[Root, ...]:
        """The roots that are made by a matrix product."""
        return tuple(root for root in self.roots if root.matrix)

    @property
    def matrices(self) -> dict[str, int]:
        """The heads of each matrix, in the order in which their rows are stacked."""
        return {root.matrix: root.heads for root in self.roots if root.matrix}

    @property
    def matrix_rows(self) -> dict[str, int]:
        """How many rows each matrix has, in the same order."""
        return {root.matrix: root.heads * root.width for root in self.roots if root.matrix}

    @property
    def rotated(self) -> dict[Role, int]:
        """The roles that have a learned rotation, with the number of heads that it turns."""
        return {role: self.heads(role) for role in self._made_by(LearnedRotation)}

    @property
    def lifted(self) -> dict[Role, tuple[int, int]]:
        """The roles that have a learned up-projection, with its heads and the latent's rank."""
        ranks = {root.name: root.width for root in self.roots}
        return {
            role: (self.heads(role), ranks[self.derivations[role].root])
            for role in self._made_by(Latent)
        }

    @property
    def scaled(self) -> tuple[Role, ...]:
        """The roles whose scale behind the norm is learned; a tie has one."""
        ops = [op for role in ROLES for op in self.derivations[role].ops]
        return tuple(dict.fromkeys(op.role for op in ops if isinstance(op, Scale)))

    def heads(self, role: Role) -> int:
        """How many heads the tensor of `role` has."""
        return self.heads_at(self.derivations[role])

    def heads_at(self, path: Path) -> int:
        """How many heads the tensor at the end of `path` has."""
        root = next(root for root in self.roots if root.name == path.root)
        return _shape(path, root, self.geometry)[0]

    @property
    def cached_key(self) -> CachedTensor:
        """The kept tensor from which K is read."""
        return self.cached[0]

    @property
    def cached_value(self) -> CachedTensor:
        """The kept tensor over which the weighted sum runs; the same one where K and V share."""
        return self.cached[-1]

    @property
    def key_heads(self) -> int:
        """How many heads K has where a query meets it: the latent has one for all."""
        return self.cached_key.heads if self.absorbed_by_query else self.heads("k")

    def _made_by(self, source: type[Source]) -> list[Role]:
        return [role for role in ROLES if isinstance(self.variant.source(role), source)]


@lru_cache(maxsize=1024)
def resolve(variant: Variant, geometry: Geometry, turned: tuple[Role, ...] = ()) -> Plan:
    """The plan of `variant` at `geometry`; ValueError, with the reason, where there is none.

    ``turned`` are the roles that the model's position scheme turns; where V is one of them, what
    was attended is turned back.
    """
    if variant.kv_heads is not None:
        geometry = replace(geometry, kv_heads=variant.kv_heads)
    paths: dict[Role, Path] = {role: _path(role, variant, turned) for role in ROLES}
    _check(variant, geometry, paths)

    roots: dict[str, Root] = {}
    for role in ROLES:
        name = paths[role].root
        heads = geometry.heads if role == "q" else geometry.kv_heads
        root = Root(name, heads, geometry.head_dim, None if name == "x" else name)
        roots.setdefault(name, _latent_root(variant) if name == LATENT else root)
    return Plan(
        variant=variant,
        geometry=geometry,
        roots=tuple(roots.values()),
        derivations=paths,
        **_folded(paths["k"], paths["v"], roots, geometry),
        output=(ApplyRope(back=True),) if "v" in turned else (),
    )


@lru_cache(maxsize=1024)
def crossed(variant: Variant, geometry: Geometry) -> Plan:
    """The plan where K and V are made from another sequence, the source; errors as `resolve`.

    A tie then shares the matrix, not the tensor: one matrix may be applied to both inputs.
    Positions of two sequences have nothing to do with each other, so nothing is turned.
    """
    plan = resolve(variant, geometry)
    heads = {root.name: root for root in plan.roots}
    query, key, value = (plan.derivations[role] for role in ROLES)
    roots = {query.root: heads[query.root]}
    paths: dict[Role, Path] = {"q": query}
    sourced: dict[Role, Path] = {"k": key, "v": value}
    for role, path in sourced.items():
        own, name = heads[path.root], f"{path.root} of the source"
        roots[name] = replace(own, name=name, reads="source")
        paths[role] = replace(path, root=name)
    folded = _folded(paths["k"], paths["v"], roots, geometry)
    return replace(plan, roots=tuple(roots.values()), derivations=paths, **folded)


def keys_only(plan: Plan) -> Plan:
    """The same layer, decoded from K alone: V is a map of all heads of K, by the inverse of W_k.

    ``unfold`` then projects by V's map, which belongs to given weights: no plan says what it is.
    ValueError where there is no such map. arXiv:2503.05840.
    """
    key, value, size = plan.derivations["k"], plan.derivations["v"], plan.geometry
    roots = {root.name: root for root in plan.roots}
    root, name = roots[key.root], write(plan.variant)
    if len(plan.cached) == 1:
        raise ValueError(f"{name} keeps one tensor already")
    if root.matrix is None or roots[value.root].matrix is None or LATENT in roots:
        raise ValueError(f"{name} makes K or V by no matrix of its own from the stream")
    if root.heads * root.width != size.d_model:
        raise ValueError(
            f"its key matrix is {root.heads * root.width} × {size.d_model}, not square, so "
            "nothing of the stream comes back from K"
        )
    if value.ops or root.reads == "source":
        raise ValueError("its V is normed, turned or rotated, or made from another sequence")
    kept = CachedTensor("k", 1, size.d_model, Path(root.name, (Join(),)))
    return replace(
        plan,
        cached=(kept,),
        key_ops_on_read=(Cut(), *key.ops),
        absorbed_by_query=(),
        absorbed_by_output=(UpProject("v"),),
    )


def _path(role: Role, variant: Variant, turned: tuple[Role, ...]) -> Path:
    """The way from a root to `role`: learned maps, norm, learned scale, and positions last."""
    made = _made(role, variant)
    ops = made.ops
    match variant.scores.normed:
        case ("q", "k", "v"):
            # Where V is normed too, it is the root that is: a norm and a rotation commute, and of
            # a latent it is what arXiv:2405.04434, section 3.1.2, norms.
            ops = (Normalize(), *ops)
        case ("q", "k") if role != "v":
            ops = (*ops, Normalize())
        case _:
            pass
    if variant.scores.normed and role != "v":
        ops = (*ops, Scale(_first_alike(role, variant)))
    if role in turned:
        ops = (*ops, ApplyRope())
    return replace(made, ops=ops)


def _made(role: Role, variant: Variant) -> Path:
    """The root of `role` and the learned maps on the way from it."""
    match variant.source(role):
        case Own():
            return Path(role, ())
        case Stream():
            return Path("x", ())
        case Same(origin):
            return _made(origin, variant)
        case Latent():
            return Path(LATENT, (UpProject(role),))
        case LearnedRotation(origin):
            before = _made(origin, variant)
            return replace(before, ops=(*before.ops, ApplyRotation(role)))


def _first_alike(role: Role, variant: Variant) -> Role:
    """The first role that is the same tensor: a tie holds for what is learned behind it, too."""
    return next(first for first in ROLES if _made(first, variant) == _made(role, variant))


class _Folded(TypedDict):
    """The fields of a plan that say how it is decoded."""

    cached: tuple[CachedTensor, ...]
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]
    absorbed_by_output: tuple[ApplyRotation | UpProject, ...]


def _folded(k: Path, v: Path, roots: dict[str, Root], geometry: Geometry) -> _Folded:
    """What a cache keeps, how K is read from it, and which maps are left for query and output.

    One tensor does where V differs from it by fixed maps alone, which fold into the output: the
    root in the frame that K has after its rotations. Otherwise K is kept ready, and V before its
    last fixed maps. A latent is kept before heads are made from it, which is what it is for; only
    where V is turned are K and V kept ready, for then no map can be left for the output.
    """
    ready = len(k.ops) if ApplyRope() in v.ops else _before_heads(k.ops)

    def kept(name: str, path: Path, end: int) -> CachedTensor:
        made = replace(path, ops=path.ops[:end])
        return CachedTensor(name, *_shape(made, roots[path.root], geometry), made)

    if k.root == v.root:
        common = min(_leading(k.ops, v.ops), ready)
        place = common + _rotations_first(k.ops[common:])
        rest = v.ops[common:]
        if len(_maps(rest)) == len(rest):
            unfold = (*_undone(k.ops[common:place]), *_maps(rest))
            return _Folded(
                cached=(kept(k.root, k, place),), **_read(k.ops[place:]), absorbed_by_output=unfold
            )
    last = len(v.ops) - _maps_first(v.ops[::-1])
    return _Folded(
        cached=(kept("k", k, ready), kept("v", v, last)),
        **_read(k.ops[ready:]),
        absorbed_by_output=_maps(v.ops[last:]),
    )


class _Read(TypedDict):
    """How K is met: by operations on the rows that are read, or by maps of the query."""

    key_ops_on_read: tuple[Op, ...]
    fold: tuple[Fixed, ...]


def _read(ops: tuple[Op, ...]) -> _Read:
    """Heads that a latent would have to be made into are made of the query, where they can be."""
    fixed = tuple(op for op in ops if isinstance(op, Fixed))
    if any(isinstance(op, UpProject) for op in ops) and len(fixed) == len(ops):
        return _Read(key_ops_on_read=(), absorbed_by_query=fixed)
    return _Read(key_ops_on_read=ops, absorbed_by_query=())


def _latent_root(variant: Variant) -> Root:
    """The latent: one row of as many numbers as its rank, for all heads."""
    rank = next(source.rank for source in map(variant.source, ROLES) if isinstance(source, Latent))
    return Root(LATENT, 1, rank, LATENT)


def _shape(path: Path, root: Root, geometry: Geometry) -> tuple[int, int]:
    """Heads and their width at the end of `path`, which begins at `root`."""
    if any(isinstance(op, UpProject) for op in path.ops):
        return geometry.kv_heads, geometry.head_dim
    return root.heads, root.width


def _leading(first: tuple[Op, ...], second: tuple[Op, ...]) -> int:
    """How many operations both begin with."""
    alike = [one == other for one, other in zip(first, second, strict=False)]
    return [*alike, False].index(False)


def _before_heads(ops: tuple[Op, ...]) -> int:
    """How many operations come before heads are made from a latent; all where none is."""
    return [*(isinstance(op, UpProject) for op in ops), True].index(True)


def _rotations_first(ops: tuple[Op, ...]) -> int:
    """How many rotations come before anything else."""
    return [*(isinstance(op, ApplyRotation) for op in ops), False].index(False)


def _maps_first(ops: tuple[Op, ...]) -> int:
    """How many rotations and up-projections come before anything else."""
    return [*(isinstance(op, ApplyRotation | UpProject) for op in ops), False].index(False)


def _maps(ops: tuple[Op, ...]) -> tuple[ApplyRotation | UpProject, ...]:
    return tuple(op for op in ops if isinstance(op, ApplyRotation | UpProject))


def _undone(ops: tuple[Op, ...]) -> tuple[ApplyRotation, ...]:
    """The inverse of these rotations."""
    rotations = [op for op in ops if isinstance(op, ApplyRotation)]
    return tuple(ApplyRotation(op.role, back=True) for op in reversed(rotations))


def _check(variant: Variant, geometry: Geometry, made: dict[Role, Path]) -> None:
    """Refuse what cannot be built, with the reason."""
    streams = [role for role in ROLES if made[role].root == "x"]
    width = geometry.heads * geometry.head_dim
    if streams and width != geometry.d_model:
        raise ValueError(
            f"{write(variant)} cuts the stream into heads for {' and '.join(streams)}, so "
            f"heads × head_dim must be d_model; here {geometry.heads} × {geometry.head_dim} = "
            f"{width}, and d_model is {geometry.d_model}."
        )
    ranks = [each.rank for each in map(variant.source, ROLES) if isinstance(each, Latent)]
    if ranks and ranks[0] > geometry.d_model:
        raise ValueError(
            f"{write(variant)} makes a latent of {ranks[0]} numbers from a stream of "
            f"{geometry.d_model}, of which more than {geometry.d_model} say nothing new; write a "
            f"rank of {geometry.d_model} or less."
        )
    if geometry.kv_heads == geometry.heads:
        return
    for role in ("k", "v"):
        if made[role].root in ("x", made["q"].root):
            root = "the stream" if made[role].root == "x" else "the root of q"
            raise ValueError(
                f"{write(variant)} makes {role} from {root}, so both need as many heads; here q "
                f"has {geometry.heads} and {role} has {geometry.kv_heads}. Leave out the '/', "
                f"or write {geometry.heads} after it."
            )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
