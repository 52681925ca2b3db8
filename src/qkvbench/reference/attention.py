"""One attention layer in NumPy, slow and literal: what a plan means, the truth for every backend.

Arrays are of one sequence: (time, d_model) for the stream, (time, heads, head_dim) for roots.
Weights go by name: ``q.weight`` (heads·head_dim, d_model) and ``q.bias`` for each projected root,
``v.rotation`` (heads, head_dim·(head_dim-1)/2) for each learned rotation, ``o.weight``, ``o.bias``.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

from qkvbench.model import NoPosition, Position, Rotary
from qkvbench.variant import Op, Plan, Role, Rotate, Turn

Weights = Mapping[str, np.ndarray]
# `_heads` is checked for nothing: roots of one plan may differ in it.
Heads = Float[np.ndarray, "time _heads head_dim"]
Stream = Float[np.ndarray, "time d_model"]


def forward(
    plan: Plan, weights: Weights, x: Stream, *, causal: bool, position: Position = NoPosition()
) -> Stream:
    """Attention over a whole sequence, expanded: make Q, K and V, then attend."""
    roots = project(plan, weights, x)
    times = np.arange(len(x))
    q, k, v = (make(role, plan, weights, roots, position, times) for role in ("q", "k", "v"))
    visible = np.tri(len(x), dtype=bool) if causal else np.ones((len(x), len(x)), dtype=bool)
    return merge(attend(q, k, v, visible), weights)


def decode(plan: Plan, weights: Weights, x: Stream, *, position: Position = NoPosition()) -> Stream:
    """Causal attention, folded: token by token, over nothing but the tensors that a cache keeps."""
    kept: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in plan.kept}
    rows = []
    for time in range(len(x)):
        now = np.array([time])
        roots = project(plan, weights, x[time : time + 1])
        for tensor in plan.kept:
            row = apply(tensor.path.ops, plan, weights, roots[tensor.path.root], position, now)
            kept[tensor.name].append(row)
        q = make("q", plan, weights, roots, position, now)
        keys = np.concatenate(kept[plan.kept_key.name])
        k = apply(plan.read_key, plan, weights, keys, position, np.arange(time + 1))
        v = np.concatenate(kept[plan.kept_value.name])
        seen = attend(q, k, v, np.ones((1, time + 1), dtype=bool))
        rows.append(merge(_unfold(plan, weights, seen), weights))
    return np.concatenate(rows)


def project(plan: Plan, weights: Weights, x: Stream) -> dict[str, Heads]:
    """The roots: the stream times a matrix, or the stream itself, cut into heads."""
    roots = {}
    for root in plan.roots:
        rows = x
        if root.projected:
            rows = x @ weights[f"{root.name}.weight"].T + weights[f"{root.name}.bias"]
        roots[root.name] = rows.reshape(len(x), root.heads, plan.geometry.head_dim)
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
    path = plan.paths[role]
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
            case Rotate(role, back):
                turn = rotation(weights[f"{role}.rotation"], plan.geometry.head_dim)
                turn = np.swapaxes(turn, 1, 2) if back else turn
                rows = np.einsum("thd,hed->the", rows, turn)
            case Turn():
                rows = turned(rows, position, times)
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


def turned(rows: Heads, position: Position, times: Int[np.ndarray, " time"]) -> Heads:
    """The rows as a position scheme turns them; only rotary turns anything."""
    if not isinstance(position, Rotary):
        return rows
    half = rows.shape[-1] // 2
    # arXiv:2104.09864, eq. 34, with coordinate i paired with i + half.
    frequency = position.base ** (-np.arange(half) / half)
    angle = (times[:, None] * frequency)[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = rows[..., :half], rows[..., half:]
    pairs = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate(pairs, axis=-1)


def attend(
    q: Float[np.ndarray, "queries heads head_dim"],
    k: Float[np.ndarray, "keys kv_heads head_dim"],
    v: Float[np.ndarray, "keys kv_heads head_dim"],
    visible: np.ndarray,
) -> Float[np.ndarray, "queries heads head_dim"]:
    """softmax(q·k / sqrt(head_dim))·v over the visible keys. arXiv:1706.03762, eq. 1."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v)


def merge(seen: Heads, weights: Weights) -> Stream:
    """The output projection over all heads together."""
    return seen.reshape(len(seen), -1) @ weights["o.weight"].T + weights["o.bias"]


def _unfold(plan: Plan, weights: Weights, seen: Heads) -> Heads:
    """What attending over V would have given, from what attending over its kept root gave."""
    rows = seen
    kv_heads = plan.kept_value.heads
    for op in plan.unfold:
        turn = rotation(weights[f"{op.role}.rotation"], plan.geometry.head_dim)
        turn = np.swapaxes(turn, 1, 2) if op.back else turn
        turn = np.repeat(turn, plan.geometry.heads // kv_heads, axis=0)
        rows = np.einsum("thd,hed->the", rows, turn)
    return rows
