"""From a variant and a geometry to the plan of one layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypedDict

from qkvbench.variant.linear import GatedDelta
from qkvbench.variant.mask import Mask
from qkvbench.variant.notation import write
from qkvbench.variant.plan import (
    BELOW,
    DECAY,
    FIRST_VALUE,
    GATE,
    LATENT,
    LATENTS,
    NORM_EPS,
    QUERY_LATENT,
    ROPE_KEY,
    ROPE_QUERY,
    STREAM,
    STRENGTH,
    VALUE_LATENT,
    ZEROS,
    ApplyMap,
    ApplyRope,
    CachedTensor,
    Clamp,
    Derivation,
    DownProject,
    Fixed,
    Geometry,
    Lender,
    MakeZeros,
    Mix,
    Multiply,
    Normalize,
    Op,
    OutputMap,
    Plan,
    Root,
    RopeHead,
    Scale,
    Shift,
    Take,
    UpProject,
    shape_after,
)
from qkvbench.variant.rope import AlibiBias, Rope
from qkvbench.variant.scores import ROLES, Role
from qkvbench.variant.spec import (
    NO_ATTENTION,
    Latent,
    LayerBelow,
    LearnedMap,
    Own,
    Same,
    Stream,
    Variant,
    Zeros,
)


def resolve(
    variant: Variant,
    geometry: Geometry,
    *,
    causal: bool = False,
    rope: Rope | None = None,
    alibi: AlibiBias | None = None,
    norm_eps: float = NORM_EPS,
    below: Sequence[Plan | None] = (),
) -> Plan:
    """The plan of `variant` at `geometry`, for self-attention in such a stack and position scheme.

    ``norm_eps`` is added to the mean square of a normed head. ``below`` are the plans of the layers
    below it, first to last; None is one without attention. K and V of a layer that is not there are
    the layer's own. ValueError, with the reason, if there is no plan.
    """
    lenders = _lenders(variant, below)
    for lender in _replacing(lenders):
        heads = lender.plan.geometry.kv_heads
        if variant.kv_heads not in (None, heads):
            raise ValueError(
                f"{_reads(variant, lender)}, which has {heads} key/value heads: leave out the "
                f"'/{variant.kv_heads}'."
            )
        if heads != lenders[0].plan.geometry.kv_heads:
            raise ValueError(
                f"{_reads(variant, lender)}, which has {heads} key/value heads, and K of another "
                "layer with other heads: give both layers as many."
            )
        # Those of the own role, if there is one, are as many.
        geometry = replace(geometry, kv_heads=heads)
    own = _resolve(variant, geometry, causal=causal, rope=rope, alibi=alibi, norm_eps=norm_eps)
    return _reading(own, lenders) if lenders else own


@lru_cache(maxsize=1024)
def _resolve(
    variant: Variant,
    geometry: Geometry,
    *,
    causal: bool = False,
    rope: Rope | None = None,
    alibi: AlibiBias | None = None,
    norm_eps: float = NORM_EPS,
) -> Plan:
    """The plan of a layer that makes its own K and V."""
    if variant == NO_ATTENTION:
        raise ValueError("'none' is a model without attention, and has no attention layer.")
    if variant.kv_heads is not None:
        geometry = replace(geometry, kv_heads=variant.kv_heads)
    scores = variant.scores
    if scores.nope:
        rope = alibi = None
    rope = _fitting(rope, variant, geometry)
    _check_rope(rope, variant, geometry)
    _check_linear(variant, causal=causal, alibi=alibi)
    if causal and scores.global_tokens:
        sinks = replace(scores, global_tokens=0, sinks=scores.global_tokens)
        raise ValueError(
            f"{write(variant)}: in a causal stack no token sees later ones, so global tokens are "
            f"sinks; write {write(replace(variant, scores=sinks))}."
        )
    size = _Layer(variant, geometry, rope, norm_eps)
    derivations: dict[Role, Derivation] = {role: size.derivation(role) for role in ROLES}
    _check(variant, geometry, derivations)
    rope_head = size.rope_head()
    made = [*derivations.values(), *((rope_head.query, rope_head.key) if rope_head else ())]
    roots = {each.root: size.root(each.root) for each in made}
    if scores.gate:
        width = size.width("v") if scores.gate == "number" else 1
        roots[GATE] = Root(GATE, geometry.heads, width, GATE)
    if isinstance(scores.linear, GatedDelta):
        roots |= {name: Root(name, geometry.kv_heads, 1, name) for name in (DECAY, STRENGTH)}
    every = tuple(roots.values())
    policy = _cache_policy(derivations["k"], derivations["v"], every, rope_head)
    return Plan(
        variant=variant,
        geometry=geometry,
        roots=every,
        derivations=derivations,
        **(_NO_ROWS if scores.linear else policy),
        output_ops=size.output_ops,
        exclusive=scores.exclusive,
        gate=scores.gate,
        log_scale=scores.log_scale,
        before_output=size.before_output(),
        rope_head=rope_head,
        rope=rope,
        scores=scores,
        mask=Mask(
            causal,
            scores.window,
            scores.sinks or scores.global_tokens,
            scores.diagonal,
            scores.chunk,
            scores.global_tokens,
            scores.blocks,
        ),
        biases=tuple(bias for bias in (scores.correction, alibi) if bias),
    )


def _fitting(rope: Rope | None, variant: Variant, geometry: Geometry) -> Rope | None:
    """RoPE as this layer has it: its own base, and the same share of the heads that it rotates."""
    if rope is None:
        return None
    scores = variant.scores
    base, scaling = scores.rope_base or rope.base, scores.rope_scaling or rope.scaling
    rope = replace(rope, base=float(base), scaling=scaling)
    if scores.rope_value:
        rope = replace(rope, roles=ROLES)
    if scores.rope_head:
        return replace(rope, dims=scores.rope_head, roles=("q", "k"))
    if scores.key_dim is None:
        return rope
    pairs = max(1, rope.dims * scores.key_dim // geometry.head_dim // 2)
    return replace(rope, dims=2 * pairs)


def _check_rope(rope: Rope | None, variant: Variant, geometry: Geometry) -> None:
    """Refuse RoPE on more numbers than V has."""
    width = variant.scores.value_dim or geometry.head_dim
    if rope and "v" in rope.roles and rope.dims > width:
        raise ValueError(
            f"{write(variant)}: RoPE rotates {rope.dims} numbers of each head, and V has {width}. "
            "Rotate a smaller share, as in 'rotary-inverse/0.5', or give V more."
        )


def _check_linear(variant: Variant, *, causal: bool, alibi: AlibiBias | None) -> None:
    """Refuse linear attention with a bias of scores, or a memory that runs in both directions."""
    linear = variant.scores.linear
    if linear and alibi:
        raise ValueError(
            f"{write(variant)} makes no scores, to which ALiBi could be added: write '+nope' for "
            "no positions in this layer, or take others, such as rotary ones."
        )
    if isinstance(linear, GatedDelta) and not causal:
        raise ValueError(
            f"{write(variant)} reads a text in one direction, and this stack sees all of it at "
            "once: in an encoder write '+elu' or '+favor64'."
        )


@lru_cache(maxsize=1024)
def resolve_cross(variant: Variant, geometry: Geometry) -> Plan:
    """The plan of cross-attention: K and V are made from another sequence, the source.

    A tie then shares the matrix, not the tensor: one matrix may be applied to both inputs.
    No RoPE, no mask and no position-dependent bias: positions of two sequences are unrelated; and
    no token has a V of its own.
    ValueError as `resolve`, and if K and V are to be those of a layer below.
    """
    if variant.reads_below:
        raise ValueError(
            f"Cross-attention has K and V of a source, and {write(variant)} reads a layer below. "
            f"Write it for the other attention sites, such as {write(variant)}@self."
        )
    if variant.scores.linear:
        raise ValueError(
            f"{write(variant)} is for self-attention. Write it for those attention sites, such as "
            f"{write(variant)}@self."
        )
    plan = resolve(variant, geometry)
    roots = {plan.derivations["q"].root: plan.root(plan.derivations["q"].root)}
    derivations = dict(plan.derivations)
    for role in ("k", "v"):
        derivation = plan.derivations[role]
        name = f"{derivation.root} of the source"
        roots[name] = replace(plan.root(derivation.root), name=name, reads="source")
        derivations[role] = replace(derivation, root=name)
    rope_head = plan.rope_head
    if rope_head:
        roots[rope_head.query.root] = plan.root(rope_head.query.root)
        name = f"{ROPE_KEY} of the source"
        roots[name] = replace(plan.root(ROPE_KEY), name=name, reads="source")
        rope_head = replace(rope_head, key=Derivation(name, ()))
    if plan.gate:
        roots[GATE] = plan.root(GATE)
    every = tuple(roots.values())
    return replace(
        plan,
        roots=every,
        derivations=derivations,
        **_cache_policy(derivations["k"], derivations["v"], every, rope_head),
        exclusive=False,
        rope_head=rope_head,
        log_scale=None,
        mask=Mask(),
        biases=(),
    )


def _lenders(variant: Variant, below: Sequence[Plan | None]) -> tuple[Lender, ...]:
    """The layers whose K and V a layer above all of `below` reads.

    If such a layer reads its own from another, it is that one.
    """
    found: list[Lender] = []
    for role in ("k", "v"):
        source = variant.source(role)
        layers = source.distance(len(below)) if isinstance(source, LayerBelow) else 0
        if layers:
            plan = below[-layers]
            if plan is None:
                raise ValueError(
                    f"{write(variant)} reads {role.upper()} of the layer {layers} below, which has "
                    "no attention."
                )
            if plan.linear:
                raise ValueError(
                    f"{write(variant)} reads {role.upper()} of the layer {layers} below, and "
                    f"{write(plan.variant)} keeps neither K nor V."
                )
            distance = layers + plan.layers_below(role)
            found.append(Lender(BELOW[role], role, distance, plan.owner(role)))
    # In the first layer it is V itself that would be mixed into V.
    if variant.scores.first_value and below:
        if below[0] is None:
            raise ValueError(
                f"{write(variant)} mixes V of the first layer into V, and that has no attention."
            )
        found.append(Lender(FIRST_VALUE, "v", len(below), below[0]))
    return tuple(found)


def _replacing(lenders: tuple[Lender, ...]) -> list[Lender]:
    """Those whose K or V takes the place of the layer's own."""
    return [lender for lender in lenders if lender.root == BELOW[lender.role]]


def _reads(variant: Variant, lender: Lender) -> str:
    """The beginning of a sentence that refuses a lender."""
    return (
        f"{write(variant)} reads {lender.role.upper()} of the layer {lender.layers} below, "
        f"{write(lender.plan.variant)}"
    )


def _reading(own: Plan, lenders: tuple[Lender, ...]) -> Plan:
    """The plan of a layer with what it reads of layers below, and all else its own."""
    lent = {lender.role: lender.plan for lender in _replacing(lenders)}
    roots: dict[str, Root] = {}
    derivations = dict(own.derivations)
    for lender in lenders:
        _check_lender(own, lender)
        role, plan = lender.role, lender.plan
        width = plan.score_width if role == "k" else plan.width("v")
        roots[lender.root] = Root(lender.root, plan.heads(role), width, None, "layer below")
        read = Derivation(lender.root, ())
        if lender.root == FIRST_VALUE:
            value = derivations["v"]
            read = replace(value, ops=(*value.ops, Mix(FIRST_VALUE, "v")))
        derivations[role] = read
    part = own.rope_head
    names = {GATE, DECAY, STRENGTH, *(each.root for each in derivations.values())}
    names |= {part.query.root} if part else set()
    names |= {part.key.root} if part and "k" not in lent else set()
    every = (*(root for root in own.roots if root.name in names), *roots.values())
    # The content of the cache for the roles that are made here.
    rope_head = None if "k" in lent else own.rope_head
    policy = _cache_policy(derivations["k"], derivations["v"], every, rope_head)
    if own.linear:
        policy = _NO_ROWS.copy()
    policy["cached"] = tuple(
        tensor for tensor in policy["cached"] if tensor.derivation.root not in roots
    )
    if plan := lent.get("k"):
        policy["key_ops_on_read"] = plan.key_ops_on_read
        policy["absorbed_by_query"] = plan.absorbed_by_query
    if plan := lent.get("v"):
        policy["absorbed_by_output"] = plan.absorbed_by_output
    return replace(own, roots=every, derivations=derivations, lenders=lenders, **policy)


def _check_lender(own: Plan, lender: Lender) -> None:
    """Refuse K or V that does not fit the layer that reads it."""
    of, plan = _reads(own.variant, lender), lender.plan
    if lender.root == FIRST_VALUE:
        if own.heads("v") != plan.heads("v"):
            raise ValueError(
                f"{of}, with {plan.heads('v')} key/value heads and not {own.heads('v')}: give both "
                "layers as many."
            )
    elif own.mask != plan.mask:
        raise ValueError(
            f"{of}: both need one mask, since the rows of one cache are read through it. Give both "
            "the same window, chunk, blocks, sinks and diagonal."
        )
    if lender.role == "v":
        if own.width("v") != plan.width("v"):
            raise ValueError(f"{of}: give both the same '+valuedim'.")
        if _value_rope(own) != _value_rope(plan):
            raise ValueError(f"{of}: both need the same RoPE on V, which is in it already.")
        return
    if own.score_width != plan.score_width:
        raise ValueError(
            f"{of}, whose heads of K have {plan.score_width} numbers and not {own.score_width}."
        )
    if own.scores.rope_head != plan.scores.rope_head:
        raise ValueError(f"{of}: give both the same '+ropehead'.")
    if own.rope != plan.rope:
        raise ValueError(f"{of}: both need the same rotary positions, which are in K already.")


def _value_rope(plan: Plan) -> Rope | None:
    """The RoPE of V's heads, if it has any."""
    return plan.rope if plan.rope and "v" in plan.rope.roles else None


@dataclass(frozen=True)
class _Layer:
    """A variant at its sizes, from which the roots and derivations follow."""

    variant: Variant
    geometry: Geometry
    rope: Rope | None
    norm_eps: float

    @property
    def rotated(self) -> tuple[Role, ...]:
        """The roles with RoPE on their own heads."""
        return self.rope.roles if self.rope and not self.variant.scores.rope_head else ()

    @property
    def output_ops(self) -> tuple[ApplyRope, ...]:
        """The inverse RoPE of a layer with RoPE on V."""
        stays = self.variant.scores.rope_value == "stays"
        return (ApplyRope(back=True),) if "v" in self.rotated and not stays else ()

    def heads(self, role: Role) -> int:
        """The heads of `role`."""
        return self.geometry.heads if role == "q" else self.geometry.kv_heads

    def width(self, role: Role) -> int:
        """The numbers in each head of `role`."""
        scores = self.variant.scores
        own = scores.value_dim if role == "v" else scores.key_dim
        return own or self.geometry.head_dim

    def root(self, name: str) -> Root:
        """The root of this name, as wide as the widest role that is made from it."""
        size, scores = self.geometry, self.variant.scores
        match name:
            case "x":
                return Root(STREAM, size.heads, size.head_dim, None)
            case "0":
                return Root(ZEROS, 1, size.d_model, None)
            case "c" | "cq" | "cv":
                latent = _latent(name, self.variant)
                return Root(name, latent.groups, latent.rank, name)
            case "qr" | "kr":
                assert scores.rope_head
                heads = size.heads if name == ROPE_QUERY else 1
                return Root(name, heads, scores.rope_head, name)
            case _:
                roles: list[Role] = [
                    role for role in ROLES if _maps_to(role, self.variant).root == name
                ]
                return Root(name, self.heads(roles[0]), max(map(self.width, roles)), name)

    def derivation(self, role: Role) -> Derivation:
        """From a root to `role`: learned maps, norm, learned scale, and RoPE last.

        RoPE comes last because a tied V is the tensor before it; only a norm may follow it.
        """
        scores = self.variant.scores
        if self.variant.source(role) == Zeros():
            return Derivation(ZEROS, (MakeZeros(self.heads(role), self.width(role)),))
        maps = _maps_to(role, self.variant)
        root, ops = maps.root, maps.ops
        rope = self._rope(role) if role in self.rotated else ()
        width = self.root(root).width
        heads: tuple[Op, ...] = ()
        if root in LATENTS:
            # A tie shares the up-projection, which has the name of the first of its roles, and so
            # does a role that is made of another by a map.
            made_up = ops[0]
            assert isinstance(made_up, UpProject), "a latent is read by an up-projection first"
            by_name: dict[str, Role] = {each: each for each in ROLES}
            named = by_name[made_up.part]
            width = max(
                self.width(each) for each in ROLES if made_up in _maps_to(each, self.variant).ops
            )
            heads, ops = (UpProject(named, self.heads(named), width),), ops[1:]
            if scores.latent_norm:
                made = self.root(root)
                shape = (made.width,) if made.heads == 1 else (made.heads, made.width)
                heads = (Normalize(eps=self.norm_eps), Scale(root, shape), *heads)
        if self.width(role) < width:
            heads = (*heads, Take(self.width(role)))
        clamp = (Clamp(scores.clamp),) if scores.clamp else ()
        ops = (*heads, *ops)
        norm = scores.norm
        normalize = (Normalize(norm.kind, norm.over, self.norm_eps),)
        if norm.on_root and root != QUERY_LATENT:
            ops = (*normalize, *self._scale(role), *ops, *rope)
        elif scores.normed == ROLES and not norm.on_root:
            # If V is normed too, the root is: a norm and a rotation commute, and of a latent it is
            # the norm of arXiv:2405.04434, section 3.1.2.
            ops = (*normalize, *ops, *(self._scale(role) if role != "v" else ()), *rope)
        elif scores.normed and role != "v":
            normalize = (*normalize, *self._scale(role))
            ops = (*ops, *rope, *normalize) if norm.after_rope else (*ops, *normalize, *rope)
        else:
            ops = (*ops, *rope)
        return Derivation(root, (*clamp, *ops))

    def before_output(self) -> tuple[Op, ...]:
        """The norm of all heads of the output together, and the first of two output matrices."""
        scores, ops = self.variant.scores, ()
        if scores.output_norm:
            scale = Scale("o", (self.geometry.heads, self.width("v")))
            ops = (Normalize(over="row", eps=self.norm_eps), scale)
        if scores.output_rank:
            ops = (*ops, DownProject("o", scores.output_rank.groups, scores.output_rank.rank))
        return ops

    def rope_head(self) -> RopeHead | None:
        """The parts of Q and K that alone get RoPE."""
        width = self.variant.scores.rope_head
        if width is None:
            return None
        query = Derivation(ROPE_QUERY, self._rope("q"))
        if _maps_to("q", self.variant).root == QUERY_LATENT:
            made = UpProject(ROPE_QUERY, self.geometry.heads, width)
            before = self.derivation("q").ops
            query = Derivation(
                QUERY_LATENT, (*before[: _count_before(before, UpProject)], made, *self._rope("q"))
            )
        return RopeHead(width, query, Derivation(ROPE_KEY, self._rope("k")))

    def _rope(self, role: Role) -> tuple[Op, ...]:
        """RoPE; Q is multiplied by the attention factor of both Q and K, so that K keeps its size.

        A cache and its kernels then need no factor, and neither does a V that gets RoPE.
        """
        if self.rope is None:
            return ()
        factor = self.rope.attention_factor**2
        if role == "q" and factor != 1:
            return Multiply(factor, self.rope.dims), ApplyRope()
        return (ApplyRope(),)

    def _scale(self, role: Role) -> tuple[Op, ...]:
        """The learned scale after a norm, and the bias: a tie shares them, too."""
        norm, first = self.variant.scores.norm, _first_tied(role, self.variant)
        shape = (self.width(role),)
        root = _maps_to(role, self.variant).root
        if norm.on_root and root != QUERY_LATENT:
            first = next(each for each in ROLES if _maps_to(each, self.variant).root == root)
            shape = (self.root(root).width,)
        elif norm.per_head:
            shape = (self.heads(role), self.width(role))
        scale = Scale(first, shape)
        return (scale, Shift(first, shape)) if norm.shifted else (scale,)


def _maps_to(role: Role, variant: Variant) -> Derivation:
    """The root of `role` and the learned maps from it."""
    match variant.source(role):
        case Own() | LayerBelow():
            return Derivation(role, ())
        case Stream():
            return Derivation(STREAM, ())
        case Same(origin):
            return _maps_to(origin, variant)
        case Latent(own=own):
            # Its sizes are those of the layer.
            latent = QUERY_LATENT if role == "q" else VALUE_LATENT if own else LATENT
            return Derivation(latent, (UpProject(role, 0, 0),))
        case LearnedMap(origin, kind):
            before = _maps_to(origin, variant)
            return replace(before, ops=(*before.ops, ApplyMap(role, kind)))
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
    absorbed_by_output: tuple[OutputMap, ...]


# Linear attention keeps a state.
_NO_ROWS = _CachePolicy(cached=(), key_ops_on_read=(), absorbed_by_query=(), absorbed_by_output=())


def _cache_policy(
    k: Derivation, v: Derivation, roots: tuple[Root, ...], rope_head: RopeHead | None
) -> _CachePolicy:
    """The content of the cache, that of a RoPE head ready for the product."""
    policy = _content_policy(k, v, roots)
    if rope_head:
        heads, width = shape_after(rope_head.key, roots)
        policy["cached"] += (CachedTensor(ROPE_KEY, heads, width, rope_head.key),)
    return policy


def _content_policy(k: Derivation, v: Derivation, roots: tuple[Root, ...]) -> _CachePolicy:
    """The content of the cache, how K is made from it, and the maps left to query and output.

    If V differs from K's root by fixed maps alone, which the output absorbs, one tensor serves
    both: the root in K's frame, after its rotations, which the output undoes. Otherwise K is cached
    ready for the product, and V before its last fixed maps. A latent is cached before heads are
    made from it; only if V gets RoPE are K and V cached ready, since no map can then be left to the
    output.
    """
    ready = len(k.ops) if ApplyRope() in v.ops else _count_before(k.ops, UpProject)

    def cached(name: str, derivation: Derivation, end: int) -> CachedTensor:
        made = replace(derivation, ops=derivation.ops[:end])
        return CachedTensor(name, *shape_after(made, roots), made)

    if k.root == v.root:
        common = min(_shared_prefix(k.ops, v.ops), ready)
        place = common + _count_rotations(k.ops[common:])
        rest = v.ops[common:]
        if len(_maps(rest)) == len(rest):
            inverse = [op for op in k.ops[common:place] if isinstance(op, ApplyMap)]
            undone = [replace(op, back=True) for op in reversed(inverse)]
            return _CachePolicy(
                cached=(cached(k.root, k, place),),
                **_key_on_read(k.ops[place:]),
                absorbed_by_output=(*undone, *_maps(rest)),
            )
    last = len(v.ops) - _count_leading(v.ops[::-1], ApplyMap | UpProject)
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
    """Absorb K's maps into the query if nothing position-dependent follows them."""
    fixed = tuple(op for op in ops if isinstance(op, Fixed))
    if any(isinstance(op, ApplyMap | UpProject) for op in ops) and len(fixed) == len(ops):
        return _KeyOnRead(key_ops_on_read=(), absorbed_by_query=fixed)
    return _KeyOnRead(key_ops_on_read=ops, absorbed_by_query=())


def _latent(name: str, variant: Variant) -> Latent:
    """Q's latent, V's own, or that of K and V."""
    of: dict[str, tuple[Role, ...]] = {QUERY_LATENT: ("q",), VALUE_LATENT: ("v",)}
    sources = map(variant.source, of.get(name, ("k", "v")))
    return next(source for source in sources if isinstance(source, Latent))


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


def _count_rotations(ops: tuple[Op, ...]) -> int:
    """How many learned rotations come first; the inverse of any other matrix is not at hand."""
    rotations = [isinstance(op, ApplyMap) and op.kind == "rotation" for op in ops]
    return [*rotations, False].index(False)


def _maps(ops: tuple[Op, ...]) -> tuple[OutputMap, ...]:
    return tuple(op for op in ops if isinstance(op, OutputMap))


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
    latents = {role: variant.source(role) for role in ROLES}
    for role, latent in latents.items():
        if not isinstance(latent, Latent):
            continue
        if latent.rank > geometry.d_model:
            raise ValueError(
                f"{write(variant)} makes a latent of {latent.rank} numbers from a stream of "
                f"{geometry.d_model}; a rank above {geometry.d_model} adds nothing. Write a rank "
                f"of {geometry.d_model} or less."
            )
        heads = geometry.heads if role == "q" else geometry.kv_heads
        if heads % latent.groups:
            nearest = _nearest_divisor(heads, latent.groups)
            raise ValueError(
                f"{write(variant)} has {latent.groups} latents of {role}, and {heads} heads cannot "
                f"be divided among them: write '{replace(latent, groups=nearest).text}'."
            )
    _check_widths(variant, geometry)
    _check_output(variant, geometry)
    if geometry.kv_heads == geometry.heads:
        return
    for role in ("k", "v"):
        if made[role].root != ZEROS and made[role].root in (STREAM, made["q"].root):
            root = "the stream" if made[role].root == STREAM else "the root of q"
            remedy = f"Leave out the '/', or write {geometry.heads} after it."
            if variant.reads_below:
                remedy = f"Give the layer that it reads {geometry.heads} key/value heads."
            raise ValueError(
                f"{write(variant)} makes {role} from {root}, so both need as many heads; here q "
                f"has {geometry.heads} and {role} has {geometry.kv_heads}. {remedy}"
            )


def _check_output(variant: Variant, geometry: Geometry) -> None:
    """Refuse groups that the heads cannot be divided among, and a rank that is not low."""
    output = variant.scores.output_rank
    if output is None:
        return
    text, heads = write(variant), geometry.heads
    if heads % output.groups:
        nearest = _nearest_divisor(heads, output.groups)
        raise ValueError(
            f"{text}: {heads} heads cannot be divided among {output.groups} groups; write "
            f"'+outputrank{output.rank}x{nearest}'."
        )
    width = variant.scores.value_dim or geometry.head_dim
    most = min(heads // output.groups * width, geometry.d_model)
    if output.rank > most:
        raise ValueError(
            f"{text}: a group of heads has {heads // output.groups} × {width} numbers and the "
            f"stream {geometry.d_model}, so a rank above {most} adds nothing; write "
            f"'+outputrank{most}{f'x{output.groups}' if output.groups > 1 else ''}' or less."
        )


def _nearest_divisor(heads: int, groups: int) -> int:
    divisors = [n for n in range(1, heads + 1) if not heads % n]
    return min(divisors, key=lambda n: (abs(n - groups), -n))


def _check_widths(variant: Variant, geometry: Geometry) -> None:
    """Refuse sizes of heads that a source cannot have."""
    scores, text = variant.scores, write(variant)
    widths = {scores.key_dim or geometry.head_dim, scores.value_dim or geometry.head_dim}
    sources = [variant.source(role) for role in ROLES]
    if scores.key_dim or scores.value_dim:
        stated = {"key": (scores.key_dim, sources[:2]), "value": (scores.value_dim, sources[2:])}
        for suffix, (width, made) in stated.items():
            if width and Stream() in made:
                raise ValueError(
                    f"{text} cuts the stream into heads, which are {geometry.head_dim} wide: leave "
                    f"out '+{suffix}dim{width}'."
                )
        mapped = any(isinstance(op, ApplyMap) for op in _maps_to("v", variant).ops)
        if len(widths) > 1 and (mapped or variant.k == LearnedMap("v", "free")):
            raise ValueError(
                f"{text} makes V or K from the other by a square matrix, so heads of both are as "
                "wide: leave out '+keydim' and '+valuedim', or make them equal."
            )
    if scores.exclusive and (scores.value_dim or geometry.head_dim) == 1:
        raise ValueError(
            f"{text} takes away the part along V, and with one number in each head that is all: "
            "leave out '-own', or give V more."
        )
    if scores.rope_head and Zeros() in sources:
        raise ValueError(
            f"{text} attends to all keys alike, which a part with RoPE would change: leave out "
            f"'+ropehead{scores.rope_head}'."
        )
    if scores.norm.on_root and isinstance(variant.k, Latent):
        raise ValueError(f"{text}: the norm of a latent is written '+latentnorm'.")
