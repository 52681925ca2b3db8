"""A variant at a size: which matrices exist, how each role is made, what a cache keeps.

Everything that computes, counts or stores attention reads a plan, and nothing else about a variant.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from qkvbench.variant.notation import write
from qkvbench.variant.spec import ROLES, Own, Role, Rotated, Same, Stream, Variant


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
class Turn:
    """Turn each row by its position, as the model's position scheme says; none does nothing."""


Op = Rotate | Turn


@dataclass(frozen=True)
class Root:
    """A tensor that the sources name: one matrix times the stream, or the stream cut into heads."""

    name: str
    heads: int
    projected: bool


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
    """A variant resolved at a geometry.

    ``paths`` make Q, K and V from the roots (expanded). ``kept`` is what a cache holds;
    ``read_key`` turns the kept key rows into K, and ``unfold`` turns what was attended over the
    kept value rows into what attention over V itself would have given (folded).
    """

    variant: Variant
    geometry: Geometry
    roots: tuple[Root, ...]
    paths: dict[Role, Path]
    kept: tuple[Kept, ...]
    read_key: tuple[Op, ...]
    unfold: tuple[Rotate, ...]

    @property
    def projected(self) -> tuple[Root, ...]:
        """The roots that have a matrix, in the order in which their rows are stacked."""
        return tuple(root for root in self.roots if root.projected)

    @property
    def rotated(self) -> dict[Role, int]:
        """The roles that have a learned rotation, with the number of heads that it turns."""
        return {
            role: self.heads(role)
            for role in ROLES
            if isinstance(self.variant.source(role), Rotated)
        }

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
def resolve(variant: Variant, geometry: Geometry) -> Plan:
    """The plan of `variant` at `geometry`; ValueError, with the reason, where there is none."""
    if variant.kv_heads is not None:
        geometry = replace(geometry, kv_heads=variant.kv_heads)
    made: dict[Role, Path] = {role: _made(role, variant) for role in ROLES}
    _check(variant, geometry, made)

    roots: dict[str, Root] = {}
    for role in ROLES:
        name = made[role].root
        heads = geometry.heads if role == "q" else geometry.kv_heads
        roots.setdefault(name, Root(name, heads, projected=name != "x"))
    k, v = made["k"], made["v"]
    if k.root == v.root:
        # Kept in K's frame and before its turn: V must not be turned, so K is turned on read.
        kept = (Kept(k.root, roots[k.root].heads, k),)
        read_key: tuple[Op, ...] = (Turn(),)
        unfold = _relative(k.ops, v.ops)
    else:
        kept = (
            Kept("k", roots[k.root].heads, replace(k, ops=(*k.ops, Turn()))),
            Kept("v", roots[v.root].heads, Path(v.root, ())),
        )
        read_key = ()
        unfold = _relative((), v.ops)
    return Plan(
        variant=variant,
        geometry=geometry,
        roots=tuple(roots.values()),
        paths={
            "q": replace(made["q"], ops=(*made["q"].ops, Turn())),
            "k": replace(k, ops=(*k.ops, Turn())),
            "v": v,
        },
        kept=kept,
        read_key=read_key,
        unfold=unfold,
    )


def _made(role: Role, variant: Variant) -> Path:
    """The root of `role` and the learned rotations on the way from it; no positions yet."""
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


def _relative(kept: tuple[Op, ...], wanted: tuple[Op, ...]) -> tuple[Rotate, ...]:
    """The rotations from the frame in which a root is kept to the frame that is wanted."""
    shared = 0
    while shared < min(len(kept), len(wanted)) and kept[shared] == wanted[shared]:
        shared += 1
    undone = [
        Rotate(op.role, back=True) for op in reversed(kept[shared:]) if isinstance(op, Rotate)
    ]
    done = [op for op in wanted[shared:] if isinstance(op, Rotate)]
    return (*undone, *done)


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
