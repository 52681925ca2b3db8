"""The plan of one attention layer: everything that a layer is, as one value.

Sizes, roots, derivations, cache policy, mask, biases of the scores, RoPE, and every learned tensor.
Whatever computes, counts, caches or draws attention reads a plan, and nothing beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import Literal, TypeVar

from qkvbench.variant.linear import Linear, State
from qkvbench.variant.mask import Mask
from qkvbench.variant.parameter import Constant, Normal, Parameter, Rotation, linear
from qkvbench.variant.rope import AlibiBias, Rope, ScoreBias
from qkvbench.variant.scores import (
    FEATURES,
    IN_PLAN,
    ROLES,
    Bucketed,
    Gated,
    LogScale,
    Relative,
    Role,
    Scores,
    Separable,
)
from qkvbench.variant.spec import CANONICAL, MapKind, Variant

# Added to the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6


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
            divisors = ", ".join(str(n) for n in range(1, self.heads + 1) if not self.heads % n)
            raise ValueError(
                f"{self.heads} query heads cannot be divided among {self.kv_heads} key/value "
                f"heads; use one of {divisors}."
            )


def sized(
    d_model: int, heads: int, kv_heads: int | None = None, head_dim: int | None = None
) -> Geometry:
    """The geometry with defaults: as many key/value heads as heads, and heads that fill d_model."""
    if head_dim is None and (heads < 1 or d_model % heads):
        raise ValueError(f"d_model {d_model} cannot be divided into {heads} heads.")
    return Geometry(d_model, heads, kv_heads or heads, head_dim or d_model // heads)


@dataclass(frozen=True)
class ApplyMap:
    """Multiply each head by the learned matrix of `role`; `back` is the inverse of a rotation."""

    role: Role
    kind: MapKind = "rotation"
    back: bool = False


@dataclass(frozen=True)
class UpProject:
    """Make `heads` of `width` from a latent by the learned up-projection of `part`, without a bias.

    Of several latents each makes its share of the heads. ``part`` is a role, or the part of Q that
    gets RoPE.
    """

    part: str
    heads: int
    width: int


@dataclass(frozen=True)
class DownProject:
    """Make `rank` numbers of the heads in each of `groups` by the learned matrices of `part`."""

    part: str
    groups: int
    rank: int


@dataclass(frozen=True)
class Take:
    """The first `width` numbers of each head."""

    width: int


@dataclass(frozen=True)
class Multiply:
    """Multiply the first `width` numbers of each head by the number `by`."""

    by: float
    width: int


@dataclass(frozen=True)
class Clamp:
    """Keep every number between -`most` and `most`."""

    most: float


@dataclass(frozen=True)
class Normalize:
    """The norm of each head of each row, or of all heads of a row, without a learned scale.

    ``kind`` and ``over`` are those of `HeadNorm`; ``eps`` is added to the mean square.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "row"] = "head"
    eps: float = NORM_EPS


@dataclass(frozen=True)
class Scale:
    """Multiply every head by a learned scale: (width,) for all heads, or (heads, width).

    ``part`` is a role or a latent.
    """

    part: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """Add a learned bias to every head; its shape as of `Scale`."""

    part: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Mix:
    """(1 - λ) times the rows plus λ times those of another root, with one learned λ."""

    root: str
    part: str
    shape: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class ApplyRope:
    """Rotate each row by its position, as the plan's `rope` says; `back` is the inverse."""

    back: bool = False


@dataclass(frozen=True)
class MakeZeros:
    """Zeros in the place of each row: `heads` of `width` numbers."""

    heads: int
    width: int


Op = (
    ApplyMap
    | UpProject
    | DownProject
    | Take
    | Multiply
    | Clamp
    | Normalize
    | Scale
    | Shift
    | Mix
    | ApplyRope
    | MakeZeros
)
# The same linear map at every position, which the query can absorb; and those that the output can.
Fixed = ApplyMap | UpProject | Scale
OutputMap = ApplyMap | UpProject | Take

_Kind = TypeVar("_Kind", bound=Op)

# The names of the roots that are no role: the stream itself, the latent of K and V, that of Q and
# that of V alone, the parts of Q and K that alone get RoPE (arXiv:2405.04434, eq. 14 and 15), and
# the output gate.
STREAM, LATENT, QUERY_LATENT, VALUE_LATENT = "x", "c", "cq", "cv"
LATENTS = (LATENT, QUERY_LATENT, VALUE_LATENT)
ROPE_QUERY, ROPE_KEY = "qr", "kr"
GATE = "g"
# Of the gated delta rule: how much of its memory each head keeps, and how much it writes.
DECAY, STRENGTH = "decay", "strength"
# The root of zeros: the stream, of which nothing but the number of rows is used.
ZEROS = "0"
# The roots of a layer that reads K or V of a layer below: the tensors as they are there.
BELOW: dict[Role, str] = {"k": "K below", "v": "V below"}
# The root that is mixed into V: V of the first layer, as it is there.
FIRST_VALUE = "first V"

# The input that a root reads: the layer's own stream, in cross-attention another sequence, or
# nothing, since it is K or V of a layer below.
Input = Literal["stream", "source", "layer below"]


@dataclass(frozen=True)
class Root:
    """A tensor that the sources name: one matrix times an input, or the input cut into heads.

    Or K or V of a layer below, which is finished there. ``width`` numbers in each of ``heads``; a
    latent is one head, and latents for groups of heads are several. ``matrix`` names the weights;
    None if there are none.
    """

    name: str
    heads: int
    width: int
    matrix: str | None
    reads: Input = "stream"

    @property
    def is_below(self) -> bool:
        """True for K or V of a layer below."""
        return self.reads == "layer below"

    @property
    def is_latent(self) -> bool:
        """True for a latent, from which heads are made by up-projections."""
        return self.matrix in LATENTS

    @property
    def rows(self) -> int:
        """Rows of its matrix; 0 if it has none."""
        return self.heads * self.width if self.matrix else 0


@dataclass(frozen=True)
class Derivation:
    """A tensor made from a root by operations, in order."""

    root: str
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class CachedTensor:
    """One tensor in the cache, a row of `heads` × `width` for each past token."""

    name: str
    heads: int
    width: int
    derivation: Derivation


@dataclass(frozen=True)
class RopeHead:
    """The parts of Q and K that alone get RoPE: `width` more numbers, of K one head for all."""

    width: int
    query: Derivation
    key: Derivation


@dataclass(frozen=True)
class Plan:
    """A variant resolved at a geometry in one layer of a model.

    ``derivations`` make Q, K and V from the roots (expanded). ``cached`` is the content of a cache;
    ``key_ops_on_read`` make K from cached key rows. The maps ``absorbed_by_query`` (transposed, the
    last one first) act on the query instead of on K, and those ``absorbed_by_output`` on the
    attention output instead of on V (absorbed). Then, in both ways, ``exclusive`` takes away the
    part along the token's own V, ``output_ops`` are applied, the ``gate`` root multiplies, and the
    operations ``before_output`` are applied, which the output projection reads.
    Queries ready for the product are multiplied by ``log_scale``. If there is a ``rope_head``, Q·K
    is a sum of two products, and its K is cached, too.

    If K or V is that of a layer below, ``lenders`` has that layer. This one then caches nothing for
    that role, and the operations on cached rows are those of the lender, with the lender's weights.

    Linear attention caches no rows and absorbs nothing: Q, K and V are made, and K and V go into
    its ``state``.

    ``scores``, ``mask``, ``biases`` and ``rope`` say what happens to scores and positions. A kernel
    compares `features` with those that it supports.

    ``matrix_biases``: each matrix has a bias. Without an ``output_projection`` the heads, one
    beside the other, are what the layer adds to the stream.
    """

    variant: Variant
    geometry: Geometry
    roots: tuple[Root, ...]
    derivations: dict[Role, Derivation]
    cached: tuple[CachedTensor, ...]
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]
    absorbed_by_output: tuple[OutputMap, ...]
    output_ops: tuple[ApplyRope, ...] = ()
    exclusive: bool = False
    gate: Gated | None = None
    log_scale: LogScale | None = None
    before_output: tuple[Op, ...] = ()
    rope_head: RopeHead | None = None
    rope: Rope | None = None
    scores: Scores = Scores()
    mask: Mask = Mask()
    biases: tuple[ScoreBias, ...] = ()
    lenders: tuple["Lender", ...] = ()
    matrix_biases: bool = True
    output_projection: bool = True

    def __post_init__(self) -> None:
        """Refuse heads that cannot be added to the stream as they are."""
        if not self.output_projection and self.output_width != self.geometry.d_model:
            raise ValueError(
                f"Without an output projection the heads take the stream's place in the sum, and "
                f"they have {self.output_width} numbers, not {self.geometry.d_model}."
            )

    @property
    def computation(self) -> "Plan":
        """The plan, however its variant is written: equal ones compute equal numbers."""
        defaults = {field.name: field.default for field in fields(Scores) if field.name in IN_PLAN}
        return replace(
            self,
            variant=CANONICAL,
            scores=replace(self.scores, **defaults),
            lenders=tuple(replace(each, plan=each.plan.computation) for each in self.lenders),
        )

    @property
    def linear(self) -> Linear | None:
        """The linear attention that it makes in the place of a softmax; None if it makes none."""
        return self.scores.linear

    @property
    def state(self) -> State | None:
        """The cache of linear attention, which has no rows of tokens."""
        if self.linear is None:
            return None
        return self.linear.state(self.heads("k"), self.score_width, self.width("v"))

    @property
    def is_cross(self) -> bool:
        """True if K and V are made from another sequence than Q."""
        return any(root.reads == "source" for root in self.roots)

    @cached_property
    def features(self) -> frozenset[str]:
        """Everything that a kernel over cached rows must support, by name.

        Each field of the plan, its scores and its mask that is not at its default, each kind of
        bias and of operation on read. A new field is a new feature, which no kernel supports unless
        it names it.
        """
        found = {f"read.{type(op).__name__}" for op in self.key_ops_on_read}
        found |= {f"bias.{type(bias).__name__}" for bias in self.biases}
        found |= {f"mask.{name}" for name in _changed(self.mask)}
        found |= {f"scores.{name}" for name in _changed(self.scores) if name not in IN_PLAN}
        return frozenset(found | set(_changed(self)) - _STRUCTURE)

    @property
    def plain_scores(self) -> bool:
        """True if the scores are q·k alone, under a mask: the attention of every library."""
        return not any(name.startswith(("bias.", "scores.")) for name in self.features)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every learned tensor of the layer. Names are shared by all backends and files.

        ``q.weight`` (heads·head_dim, d_model) and ``q.bias`` for each root with a matrix;
        ``v.rotation`` (heads, head_dim·(head_dim-1)/2), the numbers above the diagonal of a
        skew-symmetric matrix; ``v.map`` (heads, head_dim, head_dim), any matrix; ``k.up`` (heads,
        head_dim, rank); ``k.scale`` and ``k.shift`` (head_dim,) or (heads, head_dim); ``v.mix``
        (1,); ``o.down`` (groups, rank, numbers of a group of heads); ``o.weight``, ``o.bias``; for
        a learned bias, shared by the heads, ``correction.temperature`` (1,) and
        ``correction.features``; for buckets of distance ``correction.buckets`` (heads, buckets);
        for a sink logit ``correction.sink`` (heads,).
        """
        size = self.geometry
        found: list[Parameter] = []
        # A variant with a correction begins as the same function as the one without.
        for bias in self.biases:
            match bias:
                case Separable() | Relative():
                    found += [_full("correction.temperature", (1,), 1.0)]
                    found += [_full("correction.features", (FEATURES,), 0.0)]
                case Bucketed(buckets):
                    found += [_full("correction.buckets", (size.heads, buckets), 0.0)]
                case AlibiBias():
                    pass
        for name, rows in self.matrix_rows.items():
            found += linear(name, rows, size.d_model, bias=self.matrix_biases)
        if self.scores.sink_logit:
            found.append(_full("correction.sink", (size.heads,), 0.0))
        found += self.maps.values()
        found += self.head_vectors
        if self.output_projection:
            found += linear("o", size.d_model, self.output_width, bias=self.matrix_biases)
        return tuple(found)

    @property
    def head_vectors(self) -> tuple[Parameter, ...]:
        """The learned scales of heads, then their biases, then the share of the first layer's V.

        That begins as a half: the authors of arXiv:2410.17897 keep it there.
        """
        found: dict[str, Parameter] = {}
        for kind, name, start in ((Scale, "scale", 1.0), (Shift, "shift", 0.0), (Mix, "mix", 0.5)):
            behind = [op for op in self.before_output if isinstance(op, kind)]
            for op in (*self._ops(kind), *behind):
                each = f"{op.part}.{name}"
                found[each] = _full(each, op.shape, start)
        return tuple(found.values())

    @property
    def matrix_rows(self) -> dict[str, int]:
        """The rows of each projection matrix, in the order in which they are stacked."""
        return {root.matrix: root.rows for root in self.roots if root.matrix}

    @property
    def maps(self) -> dict[str, Parameter]:
        """The learned maps of heads by what they make: of roles, up-projections, the output's.

        Any matrix begins as the rotation that would stand in its place, and decays as matrices do.
        """
        found: dict[str, Parameter] = {}
        for role, kind in self.mapped_roles.items():
            heads, width = self.heads(role), self.width(role)
            spread = Normal("rotation_std", over=width**0.5)
            match kind:
                case "rotation":
                    shape, name = (heads, width * (width - 1) // 2), f"{role}.rotation"
                    found[role] = Parameter(name, shape, spread, decay=False, dtype="full")
                case "free":
                    shape, name = (heads, width, width), f"{role}.map"
                    found[role] = Parameter(name, shape, Rotation(spread), dtype="full")
        for derivation in self.all_derivations:
            for op in derivation.ops:
                if isinstance(op, UpProject):
                    shape = (op.heads, op.width, self.root(derivation.root).width)
                    found[op.part] = Parameter(f"{op.part}.up", shape, Normal(), dtype="full")
        inputs = self.geometry.heads * self.width("v")
        for op in self.before_output:
            if isinstance(op, DownProject):
                shape = (op.groups, op.rank, inputs // op.groups)
                found[op.part] = Parameter(f"{op.part}.down", shape, Normal(), dtype="full")
        return found

    @property
    def mapped_roles(self) -> dict[Role, MapKind]:
        """The roles with a learned map of their own, and its kind."""
        kinds: dict[Role, MapKind] = {op.role: op.kind for op in self._ops(ApplyMap)}
        return {role: kinds[role] for role in ROLES if role in kinds}

    @property
    def rotated_roles(self) -> tuple[Role, ...]:
        """The roles with a learned rotation of their own."""
        return tuple(role for role, kind in self.mapped_roles.items() if kind == "rotation")

    def root(self, name: str) -> Root:
        """The root with this name."""
        return next(root for root in self.roots if root.name == name)

    def shape(self, derivation: Derivation) -> tuple[int, int]:
        """Heads and their width at the end of a derivation."""
        return shape_after(derivation, self.roots)

    def heads(self, role: Role) -> int:
        """How many heads the tensor of `role` has."""
        return self.shape(self.derivations[role])[0]

    def width(self, role: Role) -> int:
        """How many numbers each head of `role` has, without those of a RoPE head."""
        return self.shape(self.derivations[role])[1]

    @property
    def output_width(self) -> int:
        """How many numbers of each token the output projection reads, or is without one."""
        heads, width = _shape_after(self.before_output, self.geometry.heads, self.width("v"))
        return heads * width

    @property
    def score_width(self) -> int:
        """How many products each score sums: the score is divided by the root of it."""
        return self.width("q") + (self.rope_head.width if self.rope_head else 0)

    def layers_below(self, role: Role) -> int:
        """How far below the layer is whose K or V is read; 0 if this layer makes it."""
        lender = self._lender(role)
        return lender.layers if lender else 0

    def owner(self, role: Role) -> "Plan":
        """The plan by which K or V is made and cached: its own, or that of a layer below."""
        lender = self._lender(role)
        return lender.plan if lender else self

    def _lender(self, role: Role) -> "Lender | None":
        return next((each for each in self.lenders if each.root == BELOW.get(role)), None)

    @property
    def row_lenders(self) -> tuple["Lender", ...]:
        """Those whose K or V of a new token a decoding step needs, beside the rows of a cache."""
        value = self.derivations["v"]
        read = {op.root for op in value.ops if isinstance(op, Mix)}
        read |= {value.root} if self.exclusive else set()
        return tuple(each for each in self.lenders if each.root in read)

    @property
    def cached_key(self) -> CachedTensor:
        """The cached tensor from which K is made; of the layer below if that has it."""
        return self.owner("k").cached[0]

    @property
    def cached_value(self) -> CachedTensor:
        """The cached tensor that is summed; the same one if K and V share it."""
        return [tensor for tensor in self.owner("v").cached if tensor.name != ROPE_KEY][-1]

    @property
    def shares_rows(self) -> bool:
        """True if one cached tensor is read as both K and V."""
        one_layer = self.layers_below("k") == self.layers_below("v")
        return one_layer and self.cached_key == self.cached_value

    @property
    def key_heads(self) -> int:
        """How many heads K has in the product with the query; latents have one for a group."""
        return self.cached_key.heads if self.absorbed_by_query else self.heads("k")

    @property
    def scaled_roles(self) -> tuple[str, ...]:
        """The roles and latents with a learned scale after the norm; tied roles have one."""
        return tuple(dict.fromkeys(op.part for op in self._ops(Scale)))

    @property
    def all_derivations(self) -> tuple[Derivation, ...]:
        """Everything that is made from roots: the roles, and the parts that alone get RoPE."""
        made = [self.derivations[role] for role in ROLES]
        if self.rope_head:
            made.append(self.rope_head.query)
        if self.rope_head and not self.layers_below("k"):
            made.append(self.rope_head.key)
        return tuple(made)

    def _ops(self, kind: type[_Kind]) -> list[_Kind]:
        """The operations of this kind in all derivations."""
        return [op for each in self.all_derivations for op in each.ops if isinstance(op, kind)]


@dataclass(frozen=True)
class Lender:
    """A layer below whose finished K or V is a root of this layer.

    ``root`` names it here, ``role`` says which it is there; the layer is ``layers`` below.
    """

    root: str
    role: Role
    layers: int
    plan: Plan


_Rows = TypeVar("_Rows")


def roots_below(
    lenders: Iterable[Lender], layer: int, lent: Mapping[tuple[int, Role], _Rows]
) -> dict[Derivation, _Rows]:
    """The roots of layer number `layer` that are `lent`, by layer and role."""
    return {Derivation(each.root, ()): lent[layer - each.layers, each.role] for each in lenders}


def shape_after(derivation: Derivation, roots: tuple[Root, ...]) -> tuple[int, int]:
    """Heads and their width at the end of a derivation."""
    root = next(root for root in roots if root.name == derivation.root)
    return _shape_after(derivation.ops, root.heads, root.width)


def _shape_after(ops: tuple[Op, ...], heads: int, width: int) -> tuple[int, int]:
    for op in ops:
        match op:
            case UpProject() | MakeZeros():
                heads, width = op.heads, op.width
            case DownProject():
                heads, width = op.groups, op.rank
            case Take():
                width = op.width
            case _:
                pass
    return heads, width


def _full(name: str, shape: tuple[int, ...], start: float) -> Parameter:
    """Learned numbers that begin as `start`, without weight decay, in full precision."""
    return Parameter(name, shape, Constant(start), decay=False, dtype="full")


# The fields of a plan that every kernel over cached rows gets in its arguments.
_STRUCTURE = {
    "variant",
    "geometry",
    "roots",
    "derivations",
    "cached",
    "key_ops_on_read",
    "absorbed_by_query",
    "absorbed_by_output",
    "output_ops",
    "exclusive",
    "gate",
    "log_scale",
    "before_output",
    "rope",
    "scores",
    "mask",
    "biases",
    "lenders",
    "matrix_biases",
    "output_projection",
}


def _changed(value: Plan | Mask | Scores) -> list[str]:
    """The fields that are not at their defaults."""
    return [
        field.name
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    ]
