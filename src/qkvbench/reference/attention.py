"""One attention layer in NumPy, slow and literal: what a plan means, the truth for every backend.

Arrays are of one sequence: (time, d_model) for the stream, (time, heads, head_dim) for roots.
Weights go by name: ``q.weight`` (heads·head_dim, d_model) and ``q.bias`` for each projected root,
``v.rotation`` (heads, head_dim·(head_dim-1)/2) for each learned rotation, ``k.up`` (heads,
head_dim, rank) for each up-projection of the latent ``c``, ``k.scale`` (head_dim,) behind each
norm, ``o.weight``, ``o.bias``. A correction of the scores has, for all heads together,
``correction.temperature`` (1,) and ``correction.features`` (features,).
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

from qkvbench.model import Alibi, NoPosition, Position, Rotary, RotaryWithInverse, rotary_dim
from qkvbench.variant import (
    FEATURES,
    ApplyRope,
    ApplyRotation,
    Cut,
    Fixed,
    Input,
    Join,
    Normalize,
    Op,
    Plan,
    Relative,
    Role,
    Scale,
    Separable,
    UpProject,
)

Weights = Mapping[str, np.ndarray]
# `_` is checked for nothing: roots of one plan may differ in heads, in width and, across, in time.
Heads = Float[np.ndarray, "_time _heads _width"]
Stream = Float[np.ndarray, "time d_model"]
SourceStream = Float[np.ndarray, "source_time d_model"]
Times = Int[np.ndarray, " times"]

# Below the mean square of a head, so that a head of zeros stays one.
NORM_EPS = 1e-6


def forward(
    plan: Plan,
    weights: Weights,
    x: Stream,
    *,
    causal: bool,
    position: Position = NoPosition(),
    window: int | None = None,
) -> Stream:
    """Attention over a whole sequence, expanded: make Q, K and V, then attend."""
    roots = project(plan, weights, x)
    times = np.arange(len(x))
    q, k, v = (make(role, plan, weights, roots, position, times) for role in ("q", "k", "v"))
    shift = added(plan, weights, position, times, times, causal=causal, window=window)
    seen = attend(q, k, v, shift, weights)
    return merge(apply(plan.output, plan, weights, seen, position, times), weights)


def cross(plan: Plan, weights: Weights, x: Stream, source: SourceStream) -> Stream:
    """Attention of one sequence over another: Q is made from `x`, K and V from the source."""
    roots = project(plan, weights, x, source)
    rows, columns, nowhere = np.arange(len(x)), np.arange(len(source)), NoPosition()
    q, k, v = (make(role, plan, weights, roots, nowhere, columns) for role in ("q", "k", "v"))
    shift = added(plan, weights, nowhere, rows, columns, causal=False)
    return merge(attend(q, k, v, shift, weights), weights)


def decode(
    plan: Plan,
    weights: Weights,
    x: Stream,
    *,
    position: Position = NoPosition(),
    window: int | None = None,
) -> Stream:
    """Causal attention, folded: token by token, over nothing but the tensors that a cache keeps."""
    kept: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in plan.cached}
    rows = []
    for time in range(len(x)):
        now, past = np.array([time]), np.arange(time + 1)
        roots = project(plan, weights, x[time : time + 1])
        for tensor in plan.cached:
            row = apply(tensor.path.ops, plan, weights, roots[tensor.path.root], position, now)
            kept[tensor.name].append(row)
        q = make("q", plan, weights, roots, position, now)
        keys = np.concatenate(kept[plan.cached_key.name])
        k = apply(plan.key_ops_on_read, plan, weights, keys, position, past)
        v = np.concatenate(kept[plan.cached_value.name])
        shift = added(plan, weights, position, now, past, causal=True, window=window)
        seen = attend(_fold(plan, weights, q), k, v, shift, weights, plan.geometry.head_dim)
        seen = _unfold(plan, weights, seen)
        rows.append(merge(apply(plan.output, plan, weights, seen, position, now), weights))
    return np.concatenate(rows)


def project(
    plan: Plan, weights: Weights, x: Stream, source: SourceStream | None = None
) -> dict[str, Heads]:
    """The roots: an input times a matrix, or the input itself, cut into heads."""
    inputs: dict[Input, np.ndarray] = {"stream": x, "source": x if source is None else source}
    roots = {}
    for root in plan.roots:
        rows = inputs[root.reads]
        if root.matrix:
            rows = rows @ weights[f"{root.matrix}.weight"].T + weights[f"{root.matrix}.bias"]
        roots[root.name] = rows.reshape(len(rows), root.heads, root.width)
    return roots


def make(
    role: Role,
    plan: Plan,
    weights: Weights,
    roots: Mapping[str, Heads],
    position: Position,
    times: Int[np.ndarray, " time"],
) -> Heads:
    """Q, K or V, from its root."""
    path = plan.derivations[role]
    return apply(path.ops, plan, weights, roots[path.root], position, times)


def apply(
    ops: Iterable[Op],
    plan: Plan,
    weights: Weights,
    rows: Heads,
    position: Position,
    times: Int[np.ndarray, " time"],
) -> Heads:
    """The operations of a path, in order."""
    for op in ops:
        match op:
            case ApplyRotation(role, back):
                turn = rotation(weights[f"{role}.rotation"], plan.geometry.head_dim)
                turn = np.swapaxes(turn, 1, 2) if back else turn
                rows = np.einsum("thd,hed->the", rows, turn)
            case UpProject(role):
                rows = np.einsum("tr,hdr->thd", rows[:, 0], weights[f"{role}.up"])
            case Normalize():
                rows = rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + NORM_EPS)
            case Scale(role):
                rows = rows * weights[f"{role}.scale"]
            case ApplyRope(back):
                rows = turned(rows, position, -times if back else times)
            case Join():
                rows = rows.reshape(len(rows), 1, -1)
            case Cut():
                rows = rows.reshape(len(rows), plan.geometry.kv_heads, -1)
    return rows


def rotation(
    numbers: Float[np.ndarray, "heads numbers"], head_dim: int
) -> Float[np.ndarray, "heads head_dim head_dim"]:
    """Orthogonal matrices from skew-symmetric ones A, by Cayley: (1 - A/2)^-1 (1 + A/2).

    `numbers` fill A above the diagonal, row by row. Turns by half a circle are left out.
    """
    above = np.triu_indices(head_dim, 1)
    skew = np.zeros((len(numbers), head_dim, head_dim), dtype=numbers.dtype)
    skew[:, above[0], above[1]] = numbers
    skew -= np.swapaxes(skew, 1, 2)
    one = np.eye(head_dim, dtype=numbers.dtype)
    return np.linalg.solve(one - skew / 2, one + skew / 2)


def turned(rows: Heads, position: Position, times: Times) -> Heads:
    """The rows as a position scheme turns them."""
    if not isinstance(position, Rotary | RotaryWithInverse):
        return rows
    half = rotary_dim(position, rows.shape[-1]) // 2
    # arXiv:2104.09864, eq. 34, with coordinate i paired with i + half.
    frequency = position.base ** (-np.arange(half) / half)
    angle = (times[:, None] * frequency)[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    first, second, rest = np.split(rows, [half, 2 * half], axis=-1)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate([*pairs, rest], axis=-1)


def added(
    plan: Plan,
    weights: Weights,
    position: Position,
    rows: Int[np.ndarray, " rows"],
    columns: Int[np.ndarray, " columns"],
    *,
    causal: bool,
    window: int | None = None,
) -> Float[np.ndarray, "heads rows columns"]:
    """What is added to the scores of queries at `rows` and keys at `columns`; -inf where unseen."""
    distance = rows[:, None] - columns
    visible = distance >= 0 if causal else np.ones(distance.shape, dtype=bool)
    if window is not None:
        # arXiv:2004.05150, section 3.1: a sliding window.
        visible = visible & (np.abs(distance) < window)
    if not plan.scores.diagonal:
        others = visible & (distance != 0)
        alone = ~others.any(axis=1, keepdims=True)
        visible = np.where(alone, visible, others)
    heads = plan.geometry.heads
    shift = np.zeros((heads, len(rows), len(columns)))
    if isinstance(position, Alibi):
        # arXiv:2108.12409, section 3: a geometric sequence of slopes from 2^(-8/heads).
        slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
        shift = shift - slopes[:, None, None] * np.abs(distance)
    match plan.scores.correction:
        case Separable():
            shift = shift + described(columns) @ weights["correction.features"]
        case Relative():
            shift = shift + described(distance) @ weights["correction.features"]
        case None:
            pass
    return np.where(visible, shift, -np.inf)


def described(places: Int[np.ndarray, "*places"]) -> Float[np.ndarray, "*places features"]:
    """The features of a position or a distance: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    angle = places[..., None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def attend(
    q: Float[np.ndarray, "queries heads width"],
    k: Float[np.ndarray, "keys _key_heads width"],
    v: Float[np.ndarray, "keys _value_heads value_width"],
    shift: Float[np.ndarray, "heads queries keys"],
    weights: Weights,
    head_dim: int | None = None,
) -> Float[np.ndarray, "queries heads value_width"]:
    """softmax(temperature·q·k / sqrt(head_dim) + shift)·v. arXiv:1706.03762, eq. 1.

    None is the width of `q`, which is another where maps of K were folded into it.
    """
    heads = q.shape[1]
    k, v = (np.repeat(each, heads // each.shape[1], axis=1) for each in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim or q.shape[-1])
    scores = weights.get("correction.temperature", 1.0) * scores + shift
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, v)


def merge(seen: Heads, weights: Weights) -> Stream:
    """The output projection over all heads together."""
    return seen.reshape(len(seen), -1) @ weights["o.weight"].T + weights["o.bias"]


def _fold(plan: Plan, weights: Weights, q: Heads) -> Heads:
    """Queries whose products with kept rows are those of `q` with K: q·(Ur) = (Uᵀq)·r."""
    for op in reversed(plan.absorbed_by_query):
        q = np.einsum("the,hed->thd", q, _map(op, plan, weights))
    return q


def _unfold(plan: Plan, weights: Weights, seen: Heads) -> Heads:
    """What attending over V would have given, from what attending over its kept root gave."""
    for op in plan.absorbed_by_output:
        seen = np.einsum("thd,hed->the", seen, _map(op, plan, weights))
    return seen


def _map(op: Fixed, plan: Plan, weights: Weights) -> Float[np.ndarray, "heads to width"]:
    """The matrix by which `op` maps the rows of each query head."""
    size = plan.geometry
    match op:
        case ApplyRotation(role, back):
            turn = rotation(weights[f"{role}.rotation"], size.head_dim)
            matrix = np.swapaxes(turn, 1, 2) if back else turn
        case UpProject(role):
            matrix = weights[f"{role}.up"]
        case Scale(role):
            matrix = np.diag(weights[f"{role}.scale"])[None]
    return np.repeat(matrix, size.heads // len(matrix), axis=0)
