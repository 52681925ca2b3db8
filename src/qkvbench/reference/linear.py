"""Linear attention in NumPy: as its formulas are written, over a whole text and token by token."""

import numpy as np
from jaxtyping import Float

from qkvbench.model.random_features import random_features
from qkvbench.variant import Elu, Favor, GatedDelta, Linear, Plan

Heads = Float[np.ndarray, "_time _heads _width"]
# The matrix of each head; `_` is checked for nothing, since heads of Q share one of K and V.
Memory = Float[np.ndarray, "_heads _rows _width"]
# A number of each head at each token.
Gate = Float[np.ndarray, "_time _heads"]

# Beside the sum of squares, so that a vector of zeros stays one.
EPS = 1e-6


def attend(
    plan: Plan, q: Heads, k: Heads, v: Heads, decay: Gate | None, strength: Gate | None
) -> Heads:
    """The output over a whole text: for weights of features, Σ f(q)·f(k)·v / Σ f(q)·f(k).

    `decay` and `strength` are the numbers of the stream that the gated delta rule reads.
    """
    assert plan.linear
    if isinstance(plan.linear, GatedDelta):
        memory, rows = empty(plan), []
        for time in range(len(q)):
            now = slice(time, time + 1)
            gates = (None if each is None else each[now] for each in (decay, strength))
            memory, row = step(plan, memory, q[now], k[now], v[now], *gates)
            rows.append(row)
        return np.concatenate(rows)
    k, v = (np.repeat(each, q.shape[1] // each.shape[1], axis=1) for each in (k, v))
    groups = plan.heads("k")
    weights = np.einsum(
        "qhf,khf->hqk", features(plan.linear, q, groups), features(plan.linear, k, groups)
    )
    positions = np.arange(len(q))
    weights = weights * plan.mask.visible(positions, positions)
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def empty(plan: Plan) -> Memory:
    """The memory before the first token, of each key/value head."""
    assert plan.state
    return np.zeros((plan.state.heads, plan.state.rows, plan.state.width))


def step(
    plan: Plan,
    memory: Memory,
    q: Heads,
    k: Heads,
    v: Heads,
    decay: Gate | None,
    strength: Gate | None,
) -> tuple[Memory, Heads]:
    """The memory after one more token, and the output of the token."""
    heads, groups = q.shape[1], k.shape[1]
    linear = plan.linear
    match linear:
        case GatedDelta():
            assert decay is not None
            assert strength is not None
            q, k = (each / np.sqrt((each**2).sum(-1, keepdims=True) + EPS) for each in (q, k))
            # softplus(x) = log(1 + exp(x))
            kept = np.exp(-np.array(linear.rates(groups)) * np.logaddexp(0, decay[0]))
            written = 1 / (1 + np.exp(-strength[0]))
            # S(1 − β·k·kᵀ), transposed, and what is written: arXiv:2412.06464, eq. 10.
            recalled = np.einsum("hkv,hk->hv", memory, k[0])
            erased = np.einsum("h,hk,hv->hkv", written, k[0], recalled)
            added = np.einsum("h,hk,hv->hkv", written, k[0], v[0])
            memory = kept[:, None, None] * (memory - erased) + added
            read = np.repeat(memory, heads // groups, axis=0)
            return memory, np.einsum("hkv,hk->hv", read, q[0])[None]
        case Elu() | Favor():
            counted = np.concatenate([v, np.ones((*v.shape[:2], 1))], axis=-1)
            memory = memory + np.einsum("hf,hd->hfd", features(linear, k, groups)[0], counted[0])
            read = np.repeat(memory, heads // groups, axis=0)
            summed = np.einsum("hf,hfd->hd", features(linear, q, groups)[0], read)
            return memory, (summed[:, :-1] / summed[:, -1:])[None]
        case None:
            raise AssertionError("only linear attention has a memory")


def features(linear: Linear, rows: Heads, groups: int) -> Heads:
    """F of each head, all of its numbers above 0; heads of one group have the same f.

    For FAVOR+ exp(w·x − |x|²/2) of each random w, x = rows / width^(1/4), so that the expectation
    of f(q)·f(k) is exp(q·k / sqrt(width)). arXiv:2009.14794, lemma 1.
    """
    match linear:
        case Elu():
            return np.where(rows > 0, rows + 1, np.exp(np.minimum(rows, 0)))
        case Favor():
            drawn = random_features(linear, groups, rows.shape[-1])
            drawn = np.repeat(drawn, rows.shape[1] // groups, axis=0)
            x = rows / rows.shape[-1] ** 0.25
            exponents = np.einsum("thd,hfd->thf", x, drawn) - (x**2).sum(-1, keepdims=True) / 2
            return np.exp(exponents) / np.sqrt(linear.features)
        case GatedDelta():
            raise AssertionError("the delta rule has no features")
