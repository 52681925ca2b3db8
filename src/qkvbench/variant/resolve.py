"""From a variant and a geometry to the plan of one layer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypedDict

from qkvbench.variant.mask import Mask
from qkvbench.variant.notation import write
from qkvbench.variant.plan import (
    LATENT,
    STREAM,
    ZEROS,
    ApplyRope,
    ApplyRotation,
    CachedTensor,
    Derivation,
    Fixed,
    Geometry,
    MakeZeros,
    Normalize,
    Op,
    Plan,
    Root,
    Scale,
    UpProject,
    shape_after,
)
from qkvbench.variant.rope import AlibiBias, Rope
from qkvbench.variant.scores import ROLES, Role
from qkvbench.variant.spec import (
    NO_ATTENTION,
    Latent,
    LayerBelow,
    LearnedRotation,
    Own,
    Same,
    Stream,
    Variant,
    Zeros,
)

# The roots of a layer that reads K and V of a layer below: the tensors as they are there.
BELOW: dict[Role, str] = {"k": "K below", "v": "V below"}


def resolve(
    variant: Variant,
    geometry: Geometry,
    *,
    causal: bool = False,
    rope: Rope | None = None,
    alibi: AlibiBias | None = None,
    below: Sequence[Plan | None] = (),
) -> Plan:
    """The plan of `variant` at `geometry`, for self-attention in such a stack and position scheme.

    ``below`` are the plans of the layers below it, first to last; None is one without attention.
    K and V of a layer that is not there are the layer's own. ValueError, with the reason, if there
    is no plan.
    """
    own = _resolve(variant, geometry, causal=causal, rope=rope, alibi=alibi)
    match variant.k:
        case LayerBelow(layers) if layers <= len(below):
            return _reading(own, below[-layers], layers)
        case _:
            return own


@lru_cache(maxsize=1024)
def _resolve(
    variant: Variant,
    geometry: Geometry,
    *,
    causal: bool = False,
    rope: Rope | None = None,
    alibi: AlibiBias | None = None,
) -> Plan:
    """The plan of a layer that makes its own K and V."""
    if variant == NO_ATTENTION:
        raise ValueError("'none' is a model without attention, and has no attention layer.")
    if variant.kv_heads is not None:
        geometry = replace(geometry, kv_heads=variant.kv_heads)
    rotated = rope.roles if rope else ()
    derivations: dict[Role, Derivation] = {
        role: _derivation(role, variant, geometry, rotated) for role in ROLES
    }
    _check(variant, geometry, derivations)
    roots: dict[str, Root] = {}
    for role in ROLES:
        name = derivations[role].root
        heads = geometry.heads if role == "q" else geometry.kv_heads
        root = Root(name, heads, geometry.head_dim, None if name == STREAM else name)
        if name == LATENT:
            root = _latent_root(variant)
        elif name == ZEROS:
            root = Root(ZEROS, 1, geometry.d_model, None)
        roots.setdefault(name, root)
    scores = variant.scores
    return Plan(
        variant=variant,
        geometry=geometry,
        roots=tuple(roots.values()),
        derivations=derivations,
        **_cache_policy(derivations["k"], derivations["v"], tuple(roots.values()), geometry),
        output_ops=(ApplyRope(back=True),) if "v" in rotated else (),
        rope=rope,
        scores=scores,
        mask=Mask(causal, scores.window, scores.sinks, scores.diagonal),
        biases=tuple(bias for bias in (scores.correction, alibi) if bias),
    )


@lru_cache(maxsize=1024)
def resolve_cross(variant: Variant, geometry: Geometry) -> Plan:
    """The plan of cross-attention: K and V are made from another sequence, the source.

    A tie then shares the matrix, not the tensor: one matrix may be applied to both inputs.
    No RoPE, no mask and no position-dependent bias: positions of two sequences are unrelated.
    ValueError as `resolve`, and if K and V are to be those of a layer below.
    """
    if isinstance(variant.k, LayerBelow):
        raise ValueError(
            f"Cross-attention has K and V of a source, and {write(variant)} reads them from a "
            f"layer below. Write it for the other attention sites, such as {write(variant)}@self."
        )
    plan = resolve(variant, geometry)
    roots = {plan.derivations["q"].root: plan.root(plan.derivations["q"].root)}
    derivations = dict(plan.derivations)
    for role in ("k", "v"):
        derivation = plan.derivations[role]
        name = f"{derivation.root} of the source"
        roots[name] = replace(plan.root(derivation.root), name=name, reads="source")
        derivations[role] = replace(derivation, root=name)
    every = tuple(roots.values())
    policy = _cache_policy(derivations["k"], derivations["v"], every, plan.geometry)
    return replace(plan, roots=every, derivations=derivations, **policy, mask=Mask(), biases=())


def _reading(own: Plan, lender: Plan | None, layers: int) -> Plan:
    """The plan of a layer whose K and V are those of `lender`, so many layers below.

    Of the layer's own plan Q is left, and all that happens to its scores.
    """
    text = write(own.variant)
    if lender is None:
        raise ValueError(f"{text} reads K and V of the layer {layers} below, which has none.")
    distance, lender = layers + lender.layers_below, lender.owner
    of = f"{text} reads K and V of the layer {distance} below, {write(lender.variant)}"
    size = replace(own.geometry, kv_heads=lender.geometry.kv_heads)
    if own.variant.kv_heads not in (None, size.kv_heads):
        raise ValueError(
            f"{of}, which has {size.kv_heads} key/value heads: leave out the "
            f"'/{own.variant.kv_heads}'."
        )
    if size.head_dim != lender.geometry.head_dim:
        raise ValueError(
            f"{of}, whose heads have {lender.geometry.head_dim} numbers and not {size.head_dim}."
        )
    if own.mask != lender.mask:
        raise ValueError(
            f"{of}: both need one mask, since the rows of one cache are read through it. Give both "
            "the same window, sinks and diagonal."
        )
    if own.rope != lender.rope:
        raise ValueError(f"{of}: both need the same rotary positions, which are in K already.")
    query = own.derivations["q"]
    roots = [own.root(query.root)]
    derivations: dict[Role, Derivation] = {"q": query}
    for role, name in BELOW.items():
        width = size.head_dim
        roots.append(Root(name, lender.heads(role), width, matrix=None, reads="layer below"))
        derivations[role] = Derivation(name, ())
    return replace(
        own,
        geometry=size,
        roots=tuple(roots),
        derivations=derivations,
        cached=(),
        key_ops_on_read=lender.key_ops_on_read,
        absorbed_by_query=lender.absorbed_by_query,
        absorbed_by_output=lender.absorbed_by_output,
        lender=lender,
        layers_below=distance,
    )


def _derivation(
    role: Role, variant: Variant, geometry: Geometry, rotated: tuple[Role, ...]
) -> Derivation:
    """From a root to `role`: learned maps, norm, learned scale, and RoPE last.

    RoPE comes last because a tied V is the tensor before it.
    """
    if variant.source(role) == Zeros():
        heads = geometry.heads if role == "q" else geometry.kv_heads
        return Derivation(ZEROS, (MakeZeros(heads, geometry.head_dim),))
    maps = _maps_to(role, variant)
    ops = maps.ops
    match variant.scores.normed:
        case ("q", "k", "v"):
            # If V is normed too, the root is: a norm and a rotation commute, and of a latent it is
            # the norm of arXiv:2405.04434, section 3.1.2.
            ops = (Normalize(), *ops)
        case ("q", "k") if role != "v":
            ops = (*ops, Normalize())
        case _:
            pass
    if variant.scores.normed and role != "v":
        ops = (*ops, Scale(_first_tied(role, variant)))
    if role in rotated:
        ops = (*ops, ApplyRope())
    return replace(maps, ops=ops)


def _maps_to(role: Role, variant: Variant) -> Derivation:
    """The root of `role` and the learned maps from it."""
    match variant.source(role):
        case Own() | LayerBelow():
            return Derivation(role, ())
        case Stream():
            return Derivation(STREAM, ())
        case Same(origin):
            return _maps_to(origin, variant)
        case Latent():
            return Derivation(LATENT, (UpProject(role),))
        case LearnedRotation(origin):
            before = _maps_to(origin, variant)
            return replace(before, ops=(*before.ops, ApplyRotation(role)))
        case Zeros():
            return Derivation(ZEROS, ())


def _first_tied(role: Role, variant: Variant) -> Role:
    """The first role that is the same tensor: a tie shares the learned scale, too."""
    return next(first for first in ROLES if _maps_to(first, variant) == _maps_to(role, variant))


class _CachePolicy(TypedDict):
    """The fields of a plan that say how it decodes."""

    cached: tuple[CachedTensor, ...]
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]
    absorbed_by_output: tuple[ApplyRotation | UpProject, ...]


def _cache_policy(
    k: Derivation, v: Derivation, roots: tuple[Root, ...], geometry: Geometry
) -> _CachePolicy:
    """The content of the cache, how K is made from it, and the maps left to query and output.

    If V differs from K's root by fixed maps alone, which the output absorbs, one tensor serves
    both: the root in K's frame, after its rotations. Otherwise K is cached ready for the product,
    and V before its last fixed maps. A latent is cached before heads are made from it; only if V
    gets RoPE are K and V cached ready, since no map can then be left to the output.
    """
    ready = len(k.ops) if ApplyRope() in v.ops else _count_before(k.ops, UpProject)

    def cached(name: str, derivation: Derivation, end: int) -> CachedTensor:
        made = replace(derivation, ops=derivation.ops[:end])
        return CachedTensor(name, *shape_after(made, roots, geometry), made)

    if k.root == v.root:
        common = min(_shared_prefix(k.ops, v.ops), ready)
        place = common + _count_leading(k.ops[common:], ApplyRotation)
        rest = v.ops[common:]
        if len(_maps(rest)) == len(rest):
            inverse = [op for op in k.ops[common:place] if isinstance(op, ApplyRotation)]
            undone = [ApplyRotation(op.role, back=True) for op in reversed(inverse)]
            return _CachePolicy(
                cached=(cached(k.root, k, place),),
                **_key_on_read(k.ops[place:]),
                absorbed_by_output=(*undone, *_maps(rest)),
            )
    last = len(v.ops) - _count_leading(v.ops[::-1], ApplyRotation | UpProject)
    if any(isinstance(op, MakeZeros) for op in k.ops):
        # Zeros are made on read, in the number of V's rows.
        return _CachePolicy(
            cached=(cached("v", v, last),),
            key_ops_on_read=k.ops,
            absorbed_by_query=(),
            absorbed_by_output=_maps(v.ops[last:]),
        )
    return _CachePolicy(
        cached=(cached("k", k, ready), cached("v", v, last)),
        **_key_on_read(k.ops[ready:]),
        absorbed_by_output=_maps(v.ops[last:]),
    )


class _KeyOnRead(TypedDict):
    key_ops_on_read: tuple[Op, ...]
    absorbed_by_query: tuple[Fixed, ...]


def _key_on_read(ops: tuple[Op, ...]) -> _KeyOnRead:
    """Absorb K's up-projection into the query if nothing position-dependent follows it."""
    fixed = tuple(op for op in ops if isinstance(op, Fixed))
    if any(isinstance(op, UpProject) for op in ops) and len(fixed) == len(ops):
        return _KeyOnRead(key_ops_on_read=(), absorbed_by_query=fixed)
    return _KeyOnRead(key_ops_on_read=ops, absorbed_by_query=())


def _latent_root(variant: Variant) -> Root:
    """The latent: one head of as many numbers as its rank."""
    rank = next(source.rank for source in map(variant.source, ROLES) if isinstance(source, Latent))
    return Root(LATENT, 1, rank, LATENT)


def _shared_prefix(first: tuple[Op, ...], second: tuple[Op, ...]) -> int:
    """How many operations both begin with."""
    equal = [one == other for one, other in zip(first, second, strict=False)]
    return [*equal, False].index(False)


def _count_before(ops: tuple[Op, ...], kind: type[Op]) -> int:
    """How many operations come before the first of `kind`; all if there is none."""
    return [*(isinstance(op, kind) for op in ops), True].index(True)


def _count_leading(ops: tuple[Op, ...], kinds: object) -> int:
    """How many operations of these kinds come first."""
    return [*(isinstance(op, kinds) for op in ops), False].index(False)  # pyright: ignore


def _maps(ops: tuple[Op, ...]) -> tuple[ApplyRotation | UpProject, ...]:
    return tuple(op for op in ops if isinstance(op, ApplyRotation | UpProject))


def _check(variant: Variant, geometry: Geometry, made: dict[Role, Derivation]) -> None:
    """Refuse a variant that cannot be built at these sizes, with the reason."""
    streams = [role for role in ROLES if made[role].root == STREAM]
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
            f"{geometry.d_model}; a rank above {geometry.d_model} adds nothing. Write a rank of "
            f"{geometry.d_model} or less."
        )
    if geometry.kv_heads == geometry.heads:
        return
    for role in ("k", "v"):
        if made[role].root != ZEROS and made[role].root in (STREAM, made["q"].root):
            root = "the stream" if made[role].root == STREAM else "the root of q"
            raise ValueError(
                f"{write(variant)} makes {role} from {root}, so both need as many heads; here q "
                f"has {geometry.heads} and {role} has {geometry.kv_heads}. Leave out the '/', "
                f"or write {geometry.heads} after it."
            )
