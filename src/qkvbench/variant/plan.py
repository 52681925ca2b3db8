"""The plan of one attention layer: everything that a layer is, as one value.

Sizes, roots, derivations, cache policy, mask, biases of the scores, RoPE, and every learned tensor.
Whatever computes, counts, caches or draws attention reads a plan, and nothing beside it.
"""

from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Literal

from qkvbench.variant.mask import Mask
from qkvbench.variant.parameter import Constant, Normal, Parameter, linear
from qkvbench.variant.rope import AlibiBias, Rope, ScoreBias
from qkvbench.variant.scores import FEATURES, IN_PLAN, ROLES, Role, Scores
from qkvbench.variant.spec import Latent, LearnedRotation, Source, Variant


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
class ApplyRotation:
    """Multiply each head by the learned rotation of `role`; `back` is the inverse."""

    role: Role
    back: bool = False


@dataclass(frozen=True)
class UpProject:
    """Make heads from the latent by the learned up-projection of `role`, without a bias."""

    role: Role


@dataclass(frozen=True)
class Normalize:
    """RMS norm of each head of each row, without a learned scale."""


@dataclass(frozen=True)
class Scale:
    """Multiply the coordinates of every head by the learned scale of `role`."""

    role: Role


@dataclass(frozen=True)
class ApplyRope:
    """Rotate each row by its position, as the plan's `rope` says; `back` is the inverse."""

    back: bool = False


@dataclass(frozen=True)
class MakeZeros:
    """Zeros in the place of each row: `heads` of `width` numbers."""

    heads: int
    width: int


Op = ApplyRotation | UpProject | Normalize | Scale | ApplyRope | MakeZeros
# The same linear map at every position, so that it can be absorbed into query or output.
Fixed = ApplyRotation | UpProject | Scale

# The names of the roots that are no role: the stream itself, and the latent with its matrix.
STREAM, LATENT = "x", "c"
# The root of zeros: the stream, of which nothing but the number of rows is used.
ZEROS = "0"

# The input that a root reads: the layer's own stream, in cross-attention another sequence, or
# nothing, since it is K or V of a layer below.
Input = Literal["stream", "source", "layer below"]


@dataclass(frozen=True)
class Root:
    """A tensor that the sources name: one matrix times an input, or the input cut into heads.

    Or K or V of a layer below, which is finished there. ``width`` numbers in each of ``heads``; a
    latent is one head. ``matrix`` names the weights; None if there are none.
    """

    name: str
    heads: int
    width: int
    matrix: str | None
    reads: Input = "stream"

    @property
    def is_stream(self) -> bool:
        """True for the input itself, without a matrix."""
        return self.matrix is None and not self.is_below

    @property
    def is_below(self) -> bool:
        """True for K or V of a layer below."""
        return self.reads == "layer below"

    @property
    def is_latent(self) -> bool:
        """True for the latent that K and V share."""
        return self.matrix == LATENT

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
class Plan:
    """A variant resolved at a geometry in one layer of a model.

    ``derivations`` make Q, K and V from the roots (expanded). ``cached`` is the content of a cache;
    ``key_ops_on_read`` make K from cached key rows. The maps ``absorbed_by_query`` (transposed, the
    last one first) act on the query instead of on K, and those ``absorbed_by_output`` on the
    attention output instead of on V (absorbed). ``output_ops`` come last in both ways.

    If K and V are those of a layer below, ``lender`` is the plan of that layer and
    ``layers_below`` its distance, at least 1. The layer then caches nothing, and the operations on
    cached rows are those of the lender, with the lender's weights.

    ``scores``, ``mask``, ``biases`` and ``rope`` say what happens to scores and positions. A kernel
    compares `features` with those that it supports.
    """

    variant: Variant
    geometry: Geometry
    roots: tuple[Root, ...]
    derivations: dict[Role, Derivation]
    cached: tuple[CachedTensor, ...]
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]
    absorbed_by_output: tuple[ApplyRotation | UpProject, ...]
    output_ops: tuple[ApplyRope, ...] = ()
    rope: Rope | None = None
    scores: Scores = Scores()
    mask: Mask = Mask()
    biases: tuple[ScoreBias, ...] = ()
    lender: "Plan | None" = None
    layers_below: int = 0

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
        skew-symmetric matrix; ``k.up`` (heads, head_dim, rank); ``k.scale`` (head_dim,);
        ``o.weight``, ``o.bias``; for a learned bias, shared by the heads,
        ``correction.temperature`` (1,) and ``correction.features``.
        """
        size = self.geometry
        found: list[Parameter] = []
        if self.correction:
            # A variant with a correction begins as the same function as the one without.
            found += [
                Parameter("correction.temperature", (1,), Constant(1.0), decay=False, dtype="full"),
                Parameter(
                    "correction.features", (FEATURES,), Constant(0.0), decay=False, dtype="full"
                ),
            ]
        for name, rows in self.matrix_rows.items():
            found += linear(name, rows, size.d_model)
        pairs = size.head_dim * (size.head_dim - 1) // 2
        spread = Normal("rotation_std", over=size.head_dim**0.5)
        for role in self._roles_from(LearnedRotation):
            shape = (self.heads(role), pairs)
            found.append(Parameter(f"{role}.rotation", shape, spread, decay=False, dtype="full"))
        for role in self._roles_from(Latent):
            rank = self.root(self.derivations[role].root).width
            shape = (self.heads(role), size.head_dim, rank)
            found.append(Parameter(f"{role}.up", shape, Normal(), dtype="full"))
        for role in self.scaled_roles:
            found.append(
                Parameter(
                    f"{role}.scale", (size.head_dim,), Constant(1.0), decay=False, dtype="full"
                )
            )
        return (*found, *linear("o", size.d_model, size.heads * size.head_dim))

    @property
    def correction(self) -> bool:
        """True if a bias of the scores is learned."""
        return any(not isinstance(bias, AlibiBias) for bias in self.biases)

    @property
    def matrix_rows(self) -> dict[str, int]:
        """The rows of each projection matrix, in the order in which they are stacked."""
        return {root.matrix: root.rows for root in self.roots if root.matrix}

    @property
    def maps(self) -> dict[Role, Parameter]:
        """The learned maps of heads, rotations and up-projections, by the role that they make."""
        named = {parameter.name: parameter for parameter in self.parameters}
        kinds: tuple[tuple[type[Source], str], ...] = (
            (LearnedRotation, "rotation"),
            (Latent, "up"),
        )
        return {
            role: named[f"{role}.{part}"] for kind, part in kinds for role in self._roles_from(kind)
        }

    @property
    def rotated_roles(self) -> tuple[Role, ...]:
        """The roles with a learned rotation of their own."""
        return tuple(self._roles_from(LearnedRotation))

    def root(self, name: str) -> Root:
        """The root with this name."""
        return next(root for root in self.roots if root.name == name)

    def heads(self, role: Role) -> int:
        """How many heads the tensor of `role` has."""
        return shape_after(self.derivations[role], self.roots, self.geometry)[0]

    @property
    def owner(self) -> "Plan":
        """The plan by which K and V are made and cached: its own, or that of a layer below."""
        return self.lender or self

    @property
    def cached_key(self) -> CachedTensor:
        """The cached tensor from which K is made; of the layer below if that has it."""
        return self.owner.cached[0]

    @property
    def cached_value(self) -> CachedTensor:
        """The cached tensor that is summed; the same one if K and V share it."""
        return self.owner.cached[-1]

    @property
    def key_heads(self) -> int:
        """How many heads K has in the product with the query; a latent has one for all."""
        return self.cached_key.heads if self.absorbed_by_query else self.heads("k")

    @property
    def scaled_roles(self) -> tuple[Role, ...]:
        """The roles with a learned scale after the norm; tied roles have one."""
        ops = [op for role in ROLES for op in self.derivations[role].ops]
        return tuple(dict.fromkeys(op.role for op in ops if isinstance(op, Scale)))

    def _roles_from(self, source: type[Source]) -> list[Role]:
        return [role for role in ROLES if isinstance(self.variant.source(role), source)]


def shape_after(
    derivation: Derivation, roots: tuple[Root, ...], geometry: Geometry
) -> tuple[int, int]:
    """Heads and their width at the end of a derivation."""
    if any(isinstance(op, UpProject) for op in derivation.ops):
        return geometry.kv_heads, geometry.head_dim
    if derivation.ops and isinstance(zeros := derivation.ops[-1], MakeZeros):
        return zeros.heads, zeros.width
    root = next(root for root in roots if root.name == derivation.root)
    return root.heads, root.width


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
    "rope",
    "scores",
    "mask",
    "biases",
    "lender",
    "layers_below",
}


def _changed(value: Plan | Mask | Scores) -> list[str]:
    """The fields that are not at their defaults."""
    return [
        field.name
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    ]
