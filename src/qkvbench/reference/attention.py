"""One attention layer in NumPy, slow and literal: the meaning of a plan, the truth for backends.

Arrays are of one sequence: (time, d_model) for the stream, (time, heads, head_dim) for roots.
Weights go by the names of `Plan.parameters`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

from qkvbench.variant import (
    FEATURES,
    GATE,
    ROPE_KEY,
    AlibiBias,
    ApplyRope,
    ApplyRotation,
    Bucketed,
    Clamp,
    Derivation,
    Fixed,
    Input,
    LogScale,
    MakeZeros,
    Multiply,
    Normalize,
    Op,
    Plan,
    Relative,
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
# The weights and the stream of the layer below whose K and V a plan reads.
Lender = tuple[Weights, Stream]
Positions = Int[np.ndarray, " positions"]

# The least squared length of a V, so that one of zeros has a direction: none.
TINY = 1e-24


def forward(
    plan: Plan,
    weights: Weights,
    x: Stream,
    source: SourceStream | None = None,
    lender: Lender | None = None,
) -> Stream:
    """Attention over a whole sequence, expanded: make Q, K and V, then attend.

    In cross-attention Q is made from `x`, K and V from `source`. A layer that reads K and V of a
    layer below needs that `lender`.
    """
    owner, its_weights, its_x = plan.owner, *(lender or (weights, x))
    rows = np.arange(len(x))
    columns = rows if source is None else np.arange(len(source))
    own = project(plan, weights, x, source)
    roots = project(owner, its_weights, its_x, source)
    q = make(plan.derivations["q"], plan, weights, own, rows)
    k = make(owner.derivations["k"], owner, its_weights, roots, columns)
    v = make(owner.derivations["v"], owner, its_weights, roots, columns)
    if plan.rope_head and owner.rope_head:
        q = joined(q, make(plan.rope_head.query, plan, weights, own, rows))
        k = joined(k, make(owner.rope_head.key, owner, its_weights, roots, columns))
    q = log_scaled(plan, q, rows)
    context = attend(plan, weights, q, k, v, bias(plan, weights, rows, columns))
    return output(plan, weights, context, own, rows)


def decode(plan: Plan, weights: Weights, x: Stream, lender: Lender | None = None) -> Stream:
    """Causal attention, absorbed: token by token, over nothing but the cached tensors.

    Those of the `lender` if K and V are read from a layer below; its maps are then absorbed.
    """
    owner, its_weights, its_x = plan.owner, *(lender or (weights, x))
    cached: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in owner.cached}
    rows = []
    for time in range(len(x)):
        now, past = np.array([time]), np.arange(time + 1)
        roots = project(owner, its_weights, its_x[time : time + 1])
        for tensor in owner.cached:
            row = make(tensor.derivation, owner, its_weights, roots, now)
            cached[tensor.name].append(row)
        own = project(plan, weights, x[time : time + 1])
        q = make(plan.derivations["q"], plan, weights, own, now)
        q = absorb_into_query(owner, its_weights, q)
        keys = np.concatenate(cached[owner.cached_key.name])
        k = apply(owner.key_ops_on_read, owner, its_weights, keys, past)
        if plan.rope_head:
            q = joined(q, make(plan.rope_head.query, plan, weights, own, now))
            k = joined(k, np.concatenate(cached[ROPE_KEY]))
        v = np.concatenate(cached[owner.cached_value.name])
        q = log_scaled(plan, q, now)
        context = attend(plan, weights, q, k, v, bias(plan, weights, now, past))
        context = absorb_into_output(owner, its_weights, context)
        rows.append(output(plan, weights, context, own, now))
    return np.concatenate(rows)


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
            rows = rows @ weights[f"{root.matrix}.weight"].T + weights[f"{root.matrix}.bias"]
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
    return apply(derivation.ops, plan, weights, roots[derivation.root], positions)


def joined(content: Heads, rope_part: Heads) -> Heads:
    """Each head followed by its part with RoPE, of which K has one for all heads."""
    heads = content.shape[1]
    return np.concatenate(
        [content, np.repeat(rope_part, heads // rope_part.shape[1], axis=1)], axis=-1
    )


def apply(  # noqa: C901 - one case for each operation
    ops: Iterable[Op], plan: Plan, weights: Weights, rows: Heads, positions: Positions
) -> Heads:
    """The rows after these operations, in order."""
    for op in ops:
        match op:
            case ApplyRotation(role, back):
                matrix = rotation(weights[f"{role}.rotation"], rows.shape[-1])
                matrix = np.swapaxes(matrix, 1, 2) if back else matrix
                rows = np.einsum("thd,hed->the", rows, matrix)
            case UpProject(part):
                rows = np.einsum("tr,hdr->thd", rows[:, 0], weights[f"{part}.up"])
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
            case ApplyRope(back):
                assert plan.rope, "only a plan with RoPE applies it"
                rows = rope(rows, plan.rope, -positions if back else positions)
            case MakeZeros(heads, width):
                rows = np.zeros((len(rows), heads, width))
    return rows


def normalize(rows: Heads, norm: Normalize) -> Heads:
    """The norm of each head, or of all heads of a row together: arXiv:1607.06450, 1910.07467."""
    axes = (-2, -1) if norm.over == "row" else (-1,)
    if norm.kind == "layer":
        rows = rows - rows.mean(axis=axes, keepdims=True)
    return rows / np.sqrt(np.mean(rows**2, axis=axes, keepdims=True) + norm.eps)


def rotation(
    numbers: Float[np.ndarray, "heads numbers"], head_dim: int
) -> Float[np.ndarray, "heads head_dim head_dim"]:
    """Orthogonal matrices from skew-symmetric ones A, by Cayley: (1 - A/2)^-1 (1 + A/2).

    `numbers` fill A above the diagonal, row by row. Rotations by half a circle cannot be written.
    """
    above = np.triu_indices(head_dim, 1)
    skew = np.zeros((len(numbers), head_dim, head_dim), dtype=numbers.dtype)
    skew[:, above[0], above[1]] = numbers
    skew -= np.swapaxes(skew, 1, 2)
    one = np.eye(head_dim, dtype=numbers.dtype)
    return np.linalg.solve(one - skew / 2, one + skew / 2)


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
    context = apply(plan.output_ops, plan, weights, context, rows)
    if plan.exclusive:
        value = make(plan.derivations["v"], plan, weights, roots, rows)
        value = np.repeat(value, context.shape[1] // value.shape[1], axis=1)
        along = (context * value).sum(axis=-1, keepdims=True)
        length = np.maximum((value**2).sum(axis=-1, keepdims=True), TINY)
        context = context - along / length * value
    if plan.gate:
        context = context / (1 + np.exp(-roots[GATE]))
    context = apply(plan.output_norm, plan, weights, context, rows)
    return context.reshape(len(context), -1) @ weights["o.weight"].T + weights["o.bias"]


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
        case ApplyRotation(role, back):
            matrix = rotation(weights[f"{role}.rotation"], plan.width(role))
            matrix = np.swapaxes(matrix, 1, 2) if back else matrix
        case UpProject(part):
            matrix = weights[f"{part}.up"]
        case Scale(part):
            scale = np.atleast_2d(weights[f"{part}.scale"])
            matrix = scale[:, :, None] * np.eye(scale.shape[-1])
    return np.repeat(matrix, plan.geometry.heads // len(matrix), axis=0)
