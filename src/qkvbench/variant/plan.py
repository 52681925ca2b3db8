"""A variant at a size: which matrices exist, how each role is made, what a cache keeps.

Everything that computes, counts or stores attention reads a plan, and nothing else about a variant.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from qkvbench.variant.notation import write
from qkvbench.variant.spec import ROLES, Own, Role, Rotated, Same, Scores, Stream, Variant


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
class Rotate:
    """Turn each head by the learned rotation of `role`; `back` is the inverse."""

    role: Role
    back: bool = False


@dataclass(frozen=True)
class Normalize:
    """Bring each head of each row to root mean square 1; nothing is learned."""


@dataclass(frozen=True)
class Scale:
    """Multiply the coordinates of every head by the learned numbers of `role`."""

    role: Role


@dataclass(frozen=True)
class Turn:
    """Turn each row by its position, as the model's position scheme says; `back` undoes it."""

    back: bool = False


Op = Rotate | Normalize | Scale | Turn


# What a layer reads: the stream it belongs to, and in cross-attention that of another sequence.
Input = Literal["stream", "source"]


@dataclass(frozen=True)
class Root:
    """A tensor that the sources name: one matrix times an input, or the input cut into heads.

    ``matrix`` names the weights; None where there are none.
    """

    name: str
    heads: int
    matrix: str | None
    reads: Input = "stream"


@dataclass(frozen=True)
class Path:
    """How a tensor is made: the operations on a root, in order."""

    root: str
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Kept:
    """One tensor in the cache for each past token, and how a new row of it is made."""

    name: str
    heads: int
    path: Path


@dataclass(frozen=True)
class Plan:
    """A variant resolved at a geometry, for the roles that the positions turn.

    ``paths`` make Q, K and V from the roots (expanded). ``kept`` is what a cache holds;
    ``read_key`` turns the kept key rows into K, and ``unfold`` turns what was attended over the
    kept value rows into what attention over V itself would have given (folded). ``output`` comes
    last in both ways.
    """

    variant: Variant
    geometry: Geometry
    roots: tuple[Root, ...]
    paths: dict[Role, Path]
    kept: tuple[Kept, ...]
    read_key: tuple[Op, ...]
    unfold: tuple[Rotate, ...]
    output: tuple[Turn, ...]

    @property
    def scores(self) -> Scores:
        """What happens to the scores besides Q·K; between two sequences nothing by positions."""
        scores = self.variant.scores
        return replace(scores, correction=None, diagonal=True) if self.crosses else scores

    @property
    def crosses(self) -> bool:
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
    def rotated(self) -> dict[Role, int]:
        """The roles that have a learned rotation, with the number of heads that it turns."""
        return {
            role: self.heads(role)
            for role in ROLES
            if isinstance(self.variant.source(role), Rotated)
        }

    @property
    def scaled(self) -> tuple[Role, ...]:
        """The roles whose scale behind the norm is learned; a tie has one."""
        ops = [op for role in ROLES for op in self.paths[role].ops]
        return tuple(dict.fromkeys(op.role for op in ops if isinstance(op, Scale)))

    def heads(self, role: Role) -> int:
        """How many heads the tensor of `role` has."""
        return next(root.heads for root in self.roots if root.name == self.paths[role].root)

    @property
    def kept_key(self) -> Kept:
        """The kept tensor from which K is read."""
        return self.kept[0]

    @property
    def kept_value(self) -> Kept:
        """The kept tensor over which the weighted sum runs; the same one where K and V share."""
        return self.kept[-1]


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
        roots.setdefault(name, Root(name, heads, None if name == "x" else name))
    kept, read_key, unfold = _folded(paths["k"], paths["v"], roots)
    return Plan(
        variant=variant,
        geometry=geometry,
        roots=tuple(roots.values()),
        paths=paths,
        kept=kept,
        read_key=read_key,
        unfold=unfold,
        output=(Turn(back=True),) if "v" in turned else (),
    )


@lru_cache(maxsize=1024)
def crossed(variant: Variant, geometry: Geometry) -> Plan:
    """The plan where K and V are made from another sequence, the source; errors as `resolve`.

    A tie then shares the matrix, not the tensor: one matrix may be applied to both inputs.
    Positions of two sequences have nothing to do with each other, so nothing is turned.
    """
    plan = resolve(variant, geometry)
    heads = {root.name: root for root in plan.roots}
    query, key, value = (plan.paths[role] for role in ROLES)
    roots = {query.root: heads[query.root]}
    paths: dict[Role, Path] = {"q": query}
    sourced: dict[Role, Path] = {"k": key, "v": value}
    for role, path in sourced.items():
        own, name = heads[path.root], f"{path.root} of the source"
        roots[name] = replace(own, name=name, reads="source")
        paths[role] = replace(path, root=name)
    kept, read_key, unfold = _folded(paths["k"], paths["v"], roots)
    return replace(
        plan,
        roots=tuple(roots.values()),
        paths=paths,
        kept=kept,
        read_key=read_key,
        unfold=unfold,
    )


def _path(role: Role, variant: Variant, turned: tuple[Role, ...]) -> Path:
    """The way from a root to `role`: rotations, norm, learned scale, and positions last."""
    made = _made(role, variant)
    ops = made.ops
    match variant.scores.normed:
        case ("q", "k", "v"):
            # Where V is normed too, it is the root that is: a norm and a rotation commute.
            ops = (Normalize(), *ops)
        case ("q", "k") if role != "v":
            ops = (*ops, Normalize())
        case _:
            pass
    if variant.scores.normed and role != "v":
        ops = (*ops, Scale(_first_alike(role, variant)))
    if role in turned:
        ops = (*ops, Turn())
    return replace(made, ops=ops)


def _made(role: Role, variant: Variant) -> Path:
    """The root of `role` and the learned rotations on the way from it."""
    match variant.source(role):
        case Own():
            return Path(role, ())
        case Stream():
            return Path("x", ())
        case Same(origin):
            return _made(origin, variant)
        case Rotated(origin):
            before = _made(origin, variant)
            return replace(before, ops=(*before.ops, Rotate(role)))


def _first_alike(role: Role, variant: Variant) -> Role:
    """The first role that is the same tensor: a tie holds for what is learned behind it, too."""
    return next(first for first in ROLES if _made(first, variant) == _made(role, variant))


def _folded(
    k: Path, v: Path, roots: dict[str, Root]
) -> tuple[tuple[Kept, ...], tuple[Op, ...], tuple[Rotate, ...]]:
    """What a cache keeps, how K is read from it, and which rotations are left for the output.

    One tensor does where V differs from it by rotations alone, which fold into the output: the
    root in the frame that K has after its rotations. Otherwise K is kept ready, and V before its
    last rotations.
    """
    if k.root == v.root:
        common = _leading(k.ops, v.ops)
        place = common + _rotations_first(k.ops[common:])
        rest = v.ops[common:]
        if _rotations_first(rest) == len(rest):
            kept = Kept(k.root, roots[k.root].heads, replace(k, ops=k.ops[:place]))
            return (kept,), k.ops[place:], (*_undone(k.ops[common:place]), *_rotations(rest))
    last = len(v.ops) - _rotations_first(v.ops[::-1])
    kept = (
        Kept("k", roots[k.root].heads, k),
        Kept("v", roots[v.root].heads, replace(v, ops=v.ops[:last])),
    )
    return kept, (), _rotations(v.ops[last:])


def _leading(first: tuple[Op, ...], second: tuple[Op, ...]) -> int:
    """How many operations both begin with."""
    alike = [one == other for one, other in zip(first, second, strict=False)]
    return [*alike, False].index(False)


def _rotations_first(ops: tuple[Op, ...]) -> int:
    """How many rotations come before anything else."""
    return [*(isinstance(op, Rotate) for op in ops), False].index(False)


def _rotations(ops: tuple[Op, ...]) -> tuple[Rotate, ...]:
    return tuple(op for op in ops if isinstance(op, Rotate))


def _undone(ops: tuple[Op, ...]) -> tuple[Rotate, ...]:
    """The inverse of these rotations."""
    return tuple(Rotate(op.role, back=True) for op in reversed(_rotations(ops)))


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
