"""One attention layer in NumPy, slow and literal: the meaning of a plan, the truth for backends.

Arrays are of one sequence: (time, d_model) for the stream, (time, heads, head_dim) for roots.
Weights go by the names of `Plan.parameters`.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qkvbench.model.rotation import rotation
from qkvbench.reference import linear
from qkvbench.variant import (
    BELOW,
    DECAY,
    FEATURES,
    GATE,
    ROLES,
    STRENGTH,
    AlibiBias,
    ApplyMap,
    ApplyRope,
    Bucketed,
    CachedTensor,
    Clamp,
    Derivation,
    DownProject,
    Fixed,
    Input,
    LogScale,
    MakeZeros,
    Mix,
    Multiply,
    Normalize,
    Op,
    Plan,
    Relative,
    Role,
    Rope,
    Scale,
    Separable,
    Shift,
    Take,
    UpProject,
)

Weights = Mapping[str, np.ndarray]
# `_` is checked for nothing: roots of one plan may differ in heads, in width and, across, in time.
Heads = Float[np.ndarray, "_time _heads _width"]
Stream = Float[np.ndarray, "time d_model"]
SourceStream = Float[np.ndarray, "source_time d_model"]
Positions = Int[np.ndarray, " positions"]

# The least squared length of a V, so that one of zeros has a direction: none.
TINY = 1e-24


class Layer(NamedTuple):
    """A layer of a stack: its plan, its weights, its input, and the layers below that it reads.

    Those by the name that their K or V has among the roots of the plan.
    """

    plan: Plan
    weights: Weights
    x: Stream
    below: "Mapping[str, Layer]" = MappingProxyType({})


def forward(
    plan: Plan,
    weights: Weights,
    x: Stream,
    source: SourceStream | None = None,
    below: Mapping[str, Layer] = MappingProxyType({}),
) -> Stream:
    """Attention over a whole sequence, expanded: make Q, K and V, then attend.

    In cross-attention Q is made from `x`, K and V from `source`. `below` are the layers below whose
    K or V is read.
    """
    rows = np.arange(len(x))
    columns = rows if source is None else np.arange(len(source))
    roots = project(plan, weights, x, source) | lent(plan, below)
    q = log_scaled(plan, whole("q", plan, weights, roots, rows), rows)
    k, v = (whole(role, plan, weights, roots, columns) for role in ("k", "v"))
    if plan.linear:
        context = linear.attend(plan, q, k, v, *gates(roots))
    else:
        context = attend(plan, weights, q, k, v, bias(plan, weights, rows, columns))
    return output(plan, weights, context, roots, rows)


def decode(
    plan: Plan, weights: Weights, x: Stream, below: Mapping[str, Layer] = MappingProxyType({})
) -> Stream:
    """Causal attention, absorbed: token by token, over nothing but the cached tensors.

    Those of a layer `below`, and its maps, if K or V is read from there.
    """
    if plan.linear:
        return _decode_linear(Layer(plan, weights, x, below))
    here = Layer(plan, weights, x, below)
    of_key, of_value = owner(here, "k"), owner(here, "v")
    keys, values = cached(of_key, plan.cached_key), cached(of_value, plan.cached_value)
    parts = cached(of_key, of_key.plan.cached[-1]) if plan.rope_head else None
    others = lent(plan, below)
    rows = []
    for time in range(len(x)):
        now, past = np.array([time]), np.arange(time + 1)
        roots = project(plan, weights, x[now]) | {name: each[now] for name, each in others.items()}
        q = make(plan.derivations["q"], plan, weights, roots, now)
        q = absorb_into_query(of_key.plan, of_key.weights, q)
        k = apply(plan.key_ops_on_read, of_key.plan, of_key.weights, keys[past], past)
        if plan.rope_head and parts is not None:
            q = joined(q, make(plan.rope_head.query, plan, weights, roots, now))
            k = joined(k, parts[past])
        q = log_scaled(plan, q, now)
        context = attend(plan, weights, q, k, values[past], bias(plan, weights, now, past))
        context = absorb_into_output(of_value.plan, of_value.weights, context)
        rows.append(output(plan, weights, context, roots, now))
    return np.concatenate(rows)


def owner(layer: Layer, role: Role) -> Layer:
    """The layer that makes and caches K or V of this one: itself, or one below."""
    return layer.below[BELOW[role]] if layer.plan.layers_below(role) else layer


def cached(layer: Layer, tensor: CachedTensor) -> Heads:
    """The rows of a cached tensor, each of its token alone."""
    plan, weights, x, below = layer
    roots = project(plan, weights, x) | lent(plan, below)
    return make(tensor.derivation, plan, weights, roots, np.arange(len(x)))


def lent(plan: Plan, below: Mapping[str, Layer]) -> dict[str, Heads]:
    """The roots that are K or V of a layer below, finished there."""
    found: dict[str, Heads] = {}
    for each in plan.lenders:
        layer = below[each.root]
        roots = project(layer.plan, layer.weights, layer.x) | lent(layer.plan, layer.below)
        positions = np.arange(len(layer.x))
        found[each.root] = whole(each.role, layer.plan, layer.weights, roots, positions)
    return found


def whole(
    role: Role, plan: Plan, weights: Weights, roots: Mapping[str, Heads], positions: Positions
) -> Heads:
    """Q, K or V; Q and K with the part that alone gets RoPE, which K of a layer below has."""
    content, part = make(plan.derivations[role], plan, weights, roots, positions), plan.rope_head
    if part is None or role == "v" or (role == "k" and plan.layers_below("k")):
        return content
    own = part.query if role == "q" else part.key
    return joined(content, make(own, plan, weights, roots, positions))


def _decode_linear(layer: Layer) -> Stream:
    """The same over a memory, which keeps no tokens."""
    plan, weights, x, below = layer
    memory, rows, others = linear.empty(plan), [], lent(plan, below)
    for time in range(len(x)):
        now = np.array([time])
        own = project(plan, weights, x[time : time + 1])
        own |= {name: each[time : time + 1] for name, each in others.items()}
        q, k, v = (whole(role, plan, weights, own, now) for role in ROLES)
        memory, context = linear.step(plan, memory, q, k, v, *gates(own))
        rows.append(output(plan, weights, context, own, now))
    return np.concatenate(rows)


def gates(roots: Mapping[str, Heads]) -> tuple[np.ndarray | None, ...]:
    """Decay and strength of the gated delta rule, a number for each head."""
    return tuple(roots[name][..., 0] if name in roots else None for name in (DECAY, STRENGTH))


def project(
    plan: Plan, weights: Weights, x: Stream, source: SourceStream | None = None
) -> dict[str, Heads]:
    """The roots: an input times a matrix, or the input itself, cut into heads.

    Those of a layer below are not among them.
    """
    inputs: dict[Input, np.ndarray] = {"stream": x, "source": x if source is None else source}
    roots = {}
    for root in plan.roots:
        if root.is_below:
            continue
        rows = inputs[root.reads]
        if root.matrix:
            rows = _linear(weights, root.matrix, rows)
        roots[root.name] = rows.reshape(len(rows), root.heads, root.width)
    return roots


def make(
    derivation: Derivation,
    plan: Plan,
    weights: Weights,
    roots: Mapping[str, Heads],
    positions: Positions,
) -> Heads:
    """The tensor at the end of a derivation."""
    return apply(derivation.ops, plan, weights, roots[derivation.root], positions, roots)


def joined(content: Heads, rope_part: Heads) -> Heads:
    """Each head followed by its part with RoPE, of which K has one for all heads."""
    heads = content.shape[1]
    return np.concatenate(
        [content, np.repeat(rope_part, heads // rope_part.shape[1], axis=1)], axis=-1
    )


def apply(  # noqa: C901, PLR0912 - one case for each operation
    ops: Iterable[Op],
    plan: Plan,
    weights: Weights,
    rows: Heads,
    positions: Positions,
    roots: Mapping[str, Heads] = MappingProxyType({}),
) -> Heads:
    """The rows after these operations, in order; `roots` are those that may be mixed into them."""
    for op in ops:
        match op:
            case ApplyMap():
                rows = np.einsum("thd,hed->the", rows, head_map(op, plan, weights))
            case UpProject(part):
                up = weights[f"{part}.up"]
                latents = np.repeat(rows, len(up) // rows.shape[1], axis=1)
                rows = np.einsum("thr,hdr->thd", latents, up)
            case DownProject(part, groups):
                inputs = rows.reshape(len(rows), groups, -1)
                rows = np.einsum("tgi,gri->tgr", inputs, weights[f"{part}.down"])
            case Take(width):
                rows = rows[..., :width]
            case Multiply(by, width):
                rows = np.where(np.arange(rows.shape[-1]) < width, by * rows, rows)
            case Clamp(most):
                rows = np.clip(rows, -most, most)
            case Normalize():
                rows = normalize(rows, op)
            case Scale(part):
                rows = rows * weights[f"{part}.scale"]
            case Shift(part):
                rows = rows + weights[f"{part}.shift"]
            case Mix(root, part):
                share = weights[f"{part}.mix"]
                rows = (1 - share) * rows + share * roots[root]
            case ApplyRope(back):
                assert plan.rope, "only a plan with RoPE applies it"
                rows = rope(rows, plan.rope, -positions if back else positions)
            case MakeZeros(heads, width):
                rows = np.zeros((len(rows), heads, width))
    return rows


def head_map(op: ApplyMap, plan: Plan, weights: Weights) -> Float[np.ndarray, "_heads to width"]:
    """The learned matrix of each head, or its inverse: a rotation, or any matrix."""
    match op.kind:
        case "rotation":
            matrix = rotation(weights[f"{op.role}.rotation"], plan.width(op.role))
            return np.swapaxes(matrix, 1, 2) if op.back else matrix
        case "free":
            return weights[f"{op.role}.map"]


def normalize(rows: Heads, norm: Normalize) -> Heads:
    """The norm of each head, or of all heads of a row together: arXiv:1607.06450, 1910.07467."""
    axes = (-2, -1) if norm.over == "row" else (-1,)
    if norm.kind == "layer":
        rows = rows - rows.mean(axis=axes, keepdims=True)
    return rows / np.sqrt(np.mean(rows**2, axis=axes, keepdims=True) + norm.eps)


def rope(rows: Heads, settings: Rope, positions: Positions) -> Heads:
    """The rows with RoPE applied: arXiv:2104.09864, eq. 34, coordinate i paired with i + half."""
    half = settings.dims // 2
    angle = (positions[:, None] * np.array(settings.frequencies))[:, None, :]  # (time, 1, half)
    cos, sin = np.cos(angle), np.sin(angle)
    first, second, rest = np.split(rows, [half, 2 * half], axis=-1)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate([*pairs, rest], axis=-1)


def bias(
    plan: Plan,
    weights: Weights,
    rows: Int[np.ndarray, " rows"],
    columns: Int[np.ndarray, " columns"],
) -> Float[np.ndarray, "heads rows columns"]:
    """The sum of all biases of the scores of queries at `rows` and keys at `columns`.

    -inf if the mask hides the key.
    """
    heads = plan.geometry.heads
    distance = rows[:, None] - columns
    shift = np.zeros((heads, len(rows), len(columns)))
    for each in plan.biases:
        match each:
            case AlibiBias():
                slopes = np.array(each.slopes(heads))
                shift = shift - slopes[:, None, None] * np.abs(distance)
            case Separable():
                shift = shift + position_features(columns) @ weights["correction.features"]
            case Relative():
                shift = shift + position_features(distance) @ weights["correction.features"]
            case Bucketed(longest=longest):
                table = np.array(each.table(causal=plan.mask.causal))
                bucket = table[np.clip(distance, -longest, longest) + longest]
                shift = shift + weights["correction.buckets"][:, bucket]
    return np.where(plan.mask.visible(rows, columns), shift, -np.inf)


def position_features(
    positions: Int[np.ndarray, "*positions"],
) -> Float[np.ndarray, "*positions features"]:
    """The features of a position or a distance: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    angle = positions[..., None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def log_scaled(plan: Plan, q: Heads, rows: Positions) -> Heads:
    """Queries at these positions times a number that grows with the position."""
    if plan.log_scale is None:
        return q
    steps = plan.log_scale.steps(rows)
    return q * (1 + LogScale.STRENGTH * np.log1p(steps))[:, None, None]


def attend(
    plan: Plan,
    weights: Weights,
    q: Float[np.ndarray, "queries heads width"],
    k: Float[np.ndarray, "keys _key_heads width"],
    v: Float[np.ndarray, "keys _value_heads value_width"],
    shift: Float[np.ndarray, "heads queries keys"],
) -> Float[np.ndarray, "queries heads value_width"]:
    """softmax(temperature·q·k / sqrt(width) + shift)·v, q·k capped. arXiv:1706.03762, eq. 1.

    The width is that of Q before it absorbs maps of K. A sink logit joins the softmax.
    """
    heads = q.shape[1]
    k, v = (np.repeat(each, heads // each.shape[1], axis=1) for each in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(plan.score_width)
    if cap := plan.scores.softcap:
        scores = cap * np.tanh(scores / cap)
    scores = weights.get("correction.temperature", 1.0) * scores + shift
    attention_weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = attention_weights.sum(axis=-1, keepdims=True)
    if plan.scores.sink_logit:
        sink = weights["correction.sink"][:, None, None]
        total = total + np.exp(sink - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", attention_weights / total, v)


def output(
    plan: Plan, weights: Weights, context: Heads, roots: Mapping[str, Heads], rows: Positions
) -> Stream:
    """The output projection over all heads together, and everything that comes before it."""
    if plan.exclusive:
        value = make(plan.derivations["v"], plan, weights, roots, rows)
        value = np.repeat(value, context.shape[1] // value.shape[1], axis=1)
        along = (context * value).sum(axis=-1, keepdims=True)
        length = np.maximum((value**2).sum(axis=-1, keepdims=True), TINY)
        context = context - along / length * value
    # V was attended to as it is with RoPE, so its own part goes before RoPE is taken back.
    context = apply(plan.output_ops, plan, weights, context, rows)
    if plan.gate:
        context = context / (1 + np.exp(-roots[GATE]))
    context = apply(plan.before_output, plan, weights, context, rows)
    rows = context.reshape(len(context), -1)
    return _linear(weights, "o", rows) if plan.output_projection else rows


def _linear(weights: Weights, name: str, rows: np.ndarray) -> np.ndarray:
    return rows @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def absorb_into_query(plan: Plan, weights: Weights, q: Heads) -> Heads:
    """Queries whose products with cached rows are those of `q` with K: q·(Ur) = (Uᵀq)·r."""
    for op in reversed(plan.absorbed_by_query):
        q = np.einsum("the,hed->thd", q, _map(op, plan, weights))
    return q


def absorb_into_output(plan: Plan, weights: Weights, context: Heads) -> Heads:
    """The output of attention over V, from the output of attention over its cached root."""
    for op in plan.absorbed_by_output:
        match op:
            case Take(width):
                context = context[..., :width]
            case _:
                context = np.einsum("thd,hed->the", context, _map(op, plan, weights))
    return context


def _map(op: Fixed, plan: Plan, weights: Weights) -> Float[np.ndarray, "heads to width"]:
    """The matrix by which `op` maps the rows of each query head."""
    match op:
        case ApplyMap():
            matrix = head_map(op, plan, weights)
        case UpProject(part):
            matrix = weights[f"{part}.up"]
        case Scale(part):
            scale = np.atleast_2d(weights[f"{part}.scale"])
            matrix = scale[:, :, None] * np.eye(scale.shape[-1])
    return np.repeat(matrix, plan.geometry.heads // len(matrix), axis=0)
