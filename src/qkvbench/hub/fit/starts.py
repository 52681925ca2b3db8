"""Tied weights from untied ones: the starts of a conversion, in closed form.

One root r serves K and V of a key/value head. V may be any linear map of it, V = A r, since A folds
into the output projection: the output is O Σ a V = (O A) Σ a r. K may be any map that commutes with
RoPE, a complex number for each pair of coordinates, which folds into the query; without RoPE, any
map. So a tie costs rank and nothing else: head_dim numbers have to carry both K and V.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from qkvbench.hub.fit.moments import Moments
from qkvbench.hub.fit.projections import Layer, Weights

# Smallest singular values that are inverted, as shares of the largest. With the first fp32 weights
# stay exact; the others are for roots whose V would be a difference of large numbers.
RIDGES = (1e-5, 1e-3, 3e-3, 1e-2, 3e-2)
# The variance of a row that is rounded to bf16 and read by rounded weights, as a share of its
# square.
ROUNDING = 2.0**-18
# A moment is damped by this share of its mean eigenvalue.
DAMPING = 1e-6
ROUNDS = 20

# The maps of K that fold into the query: with RoPE a complex number for each pair of coordinates,
# after a norm of heads none.
Freedom = Literal["any", "complex", "none"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Key/value heads that are to share one root, and what an error of each costs.

    ``keys`` and ``values`` are their matrices, ``key_costs`` and ``value_costs`` the quadratic
    forms of an error, ``inputs`` the second moment of the input with its symmetric root.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    key_costs: Sequence[Tensor]
    value_costs: Sequence[Tensor]
    inputs: Tensor
    freedom: Freedom
    inputs_root: Tensor


@dataclass(frozen=True, eq=False)
class Root:
    """A root, and the maps that make K and V of each head from it."""

    matrix: Tensor
    key_maps: Sequence[Tensor]
    value_maps: Sequence[Tensor]


def error(problem: Problem, root: Root) -> float:
    """The expected squared error of the layer's output, to first order."""
    total = 0.0
    parts = (
        (problem.keys, root.key_maps, problem.key_costs),
        (problem.values, root.value_maps, problem.value_costs),
    )
    for matrices, maps, costs in parts:
        for matrix, made, cost in zip(matrices, maps, costs, strict=True):
            difference = matrix - made @ root.matrix
            total += float((cost @ difference @ problem.inputs * difference).sum())
    return total


def rounding_error(problem: Problem, root: Root) -> float:
    """The expected squared error of the output that comes from rows and weights in bf16."""
    squares = ((root.matrix @ problem.inputs) * root.matrix).sum(1)
    parts = (
        *zip(root.key_maps, problem.key_costs, strict=True),
        *zip(root.value_maps, problem.value_costs, strict=True),
    )
    total = sum(float(((made.mT @ cost) * made.mT).sum(1) @ squares) for made, cost in parts)
    return ROUNDING * total


def keep_k(problem: Problem) -> Root:
    """The mean of the keys is the root; V is K."""
    return _unmapped(problem, _mean(problem.keys))


def keep_v(problem: Problem) -> Root:
    """The mean of the values is the root; K is V."""
    return _unmapped(problem, _mean(problem.values or problem.keys))


def average(problem: Problem, alpha: float = 0.5) -> Root:
    """The root is alpha K + (1 − alpha) V."""
    values = _mean(problem.values or problem.keys)
    return _unmapped(problem, alpha * _mean(problem.keys) + (1 - alpha) * values)


def align(problem: Problem, alpha: float = 0.5) -> Root:
    """The average of K and of V rotated and scaled to lie nearest to K, folded back into O."""
    if problem.freedom != "any":
        key = _mean(problem.keys)
        key_maps, keys = [_identity(key)] * len(problem.keys), [key]
    else:
        key = problem.keys[0]
        key_maps, keys = _procrustes(problem.keys, key, problem.inputs)
    value_maps, values = _procrustes(problem.values, _mean(keys), problem.inputs)
    matrix = alpha * _mean(keys) + (1 - alpha) * _mean(values or keys)
    return Root(matrix, key_maps, value_maps)


def regress(problem: Problem) -> Root:
    """The root is the mean of the keys; V is the linear map of it with the least squares."""
    root = keep_k(problem)
    return Root(root.matrix, root.key_maps, [_regression(v, root, problem) for v in problem.values])


def whiten(problem: Problem) -> Root:
    """The root with the smallest expected error of the output.

    Stacked and weighted by their costs and by the inputs' moment, K and V of all heads are one
    matrix, and the best root is its best approximation of rank head_dim (Eckart and Young). With
    RoPE and several heads in one, K's maps are restricted, and rounds of least squares follow.
    The error includes that of numbers in bf16, which no root may need more exactly.
    """
    if problem.freedom == "any" or len(problem.keys) == 1:
        return _eckart_young(problem)
    best = root = regress(problem)
    for _ in range(ROUNDS):
        root = _refit(problem, root)
        best = min(best, root, key=lambda one: _expected(problem, one))
    return best


def turn(problem: Problem, frequencies: Tensor) -> Root:
    """The root with the smallest expected error if RoPE acts on V, too, and back on the output.

    The output sums V = A D r, where D turns the root by the distance of key and query: so A cannot
    undo it, and can but read what turns little. Distances are drawn as 1 / (1 + distance). Rounds
    of the best maps for a root and the best root for maps, which keep K in the root's frame.
    """
    turns, chances = _turns(frequencies, len(problem.keys[0]))
    key_cost = sum(problem.key_costs, torch.zeros(()))
    wanted_keys = sum(
        (c @ k for c, k in zip(problem.key_costs, problem.keys, strict=True)), torch.zeros(())
    )
    mean_turn = torch.einsum("d,dij->ij", chances, turns)
    matrix, found = _mean(problem.keys), []
    for _ in range(ROUNDS):
        moment = matrix @ problem.inputs @ matrix.mT
        turned = torch.einsum("d,dij,jk,dlk->il", chances, turns, moment, turns)
        cross = problem.inputs @ matrix.mT @ mean_turn.mT
        maps = [torch.linalg.solve(_damped(turned), (v @ cross).mT).mT for v in problem.values]
        found.append(Root(matrix, [_identity(matrix)] * len(problem.keys), maps))
        form, wanted = key_cost, wanted_keys
        for value_map, cost, value in zip(maps, problem.value_costs, problem.values, strict=True):
            read = value_map.mT @ cost
            inner = read @ value_map
            form = form + torch.einsum("d,dji,jk,dkl->il", chances, turns, inner, turns)
            wanted = wanted + mean_turn.mT @ read @ value
        matrix = torch.linalg.solve(_damped(form), wanted)
    return found[-1]


Start = Callable[[Problem], Root]
STARTS: Mapping[str, Start] = {
    "keep-k": keep_k,
    "keep-v": keep_v,
    "average": average,
    "aligned": align,
    "regressed": regress,
    "whitened": whiten,
    "refitted": whiten,
}


# Starts that read the moments of a text; the last one's output projection is fitted again to what
# its heads give on that text.
FITTED_STARTS = ("aligned", "regressed", "whitened", "refitted")
REFITTED = "refitted"
# Starts with the least expected error.
LEAST_ERROR = ("whitened", REFITTED)


def problems(layer: Layer, weights: Weights, moments: Moments, kv_heads: int) -> list[Problem]:
    """One problem for each key/value head that is left."""
    inputs, together = _inputs(layer, weights, moments), len(weights.k) // kv_heads
    inputs_root = _root(inputs)
    queries = _query_costs(layer, weights, moments)
    costs = value_costs(weights, moments)
    found = []
    for first in range(0, len(weights.k), together):
        heads = slice(first, first + together)
        found.append(
            Problem(
                list(weights.k[heads]),
                list(weights.v[heads]),
                [_damped(cost) for cost in queries[heads]],
                [_damped(cost) for cost in costs[heads]],
                inputs,
                layer.freedom,
                inputs_root,
            )
        )
    return found


def separate(found: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The problems of K alone and of V alone, if each has a root of its own."""
    keys = [replace(p, values=[], value_costs=[]) for p in found]
    values = [
        replace(one, keys=p.values, key_costs=p.value_costs, freedom="any")
        for one, p in zip(keys, found, strict=True)
    ]
    return keys, values


def value_costs(weights: Weights, moments: Moments) -> Tensor:
    """The quadratic form of an error of each V: that of its O, times how much it is attended."""
    forms = torch.einsum("h,hoi,hoj->hij", moments.values, weights.o, weights.o)
    return forms.unflatten(0, (len(weights.k), -1)).sum(1)


def fit_latent(layer: Layer, weights: Weights, moments: Moments, rank: int) -> Weights:
    """K and V of all heads from one latent of this rank, arXiv:2405.04434, without RoPE keys.

    The rival of a tie: a cache of as many bytes, K's up-projection is repeated at every read.
    """
    inputs = _inputs(layer, weights, moments)
    costs = (*_query_costs(layer, weights, moments), *value_costs(weights, moments))
    roots = [_root(_damped(cost)) for cost in costs]
    rows = [*weights.k, *weights.v]
    stacked = torch.cat([root @ row for root, row in zip(roots, rows, strict=True)])
    u = _left(stacked @ _root(_damped(inputs)), rank)
    pieces = (u @ (u.mT @ stacked)).split(weights.k.shape[1])
    made = torch.stack(
        [torch.linalg.solve(root, piece) for root, piece in zip(roots, pieces, strict=True)]
    )
    k, v = made.split(len(weights.k))
    if not layer.centred or weights.output_bias is None:
        return weights.replaced(k=k, v=v)
    # What V loses of its mean is the same in every output, so the bias has it.
    lost = ((weights.v - v) @ moments.mean).repeat_interleave(weights.group, 0)
    bias = weights.output_bias + torch.einsum("hoi,hi->o", weights.o, lost)
    return weights.replaced(k=k, v=v, output_bias=bias)


def fold(
    layer: Layer,
    weights: Weights,
    keys: Sequence[Root],
    values: Sequence[Root],
    mean: Tensor | None = None,
) -> Weights:
    """The weights with these roots; the maps are folded into Q and O, and heads repeat their root.

    If both are the same roots, V is K. With the inputs' `mean`, a constant of K, which changes no
    softmax without RoPE, is left out, and one of V goes into the bias of the output.
    """
    q, k, v, o = (part.clone() for part in (weights.q, weights.k, weights.v, weights.o))
    together, offset = len(k) // len(keys), torch.zeros(o.shape[1], dtype=o.dtype)
    mean = mean if layer.centred else None
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        tied = key is value
        matrices = [_centred(root.matrix, mean) for root in (key, value)]
        q_heads, o_heads = [], []
        for head in range(place * together, (place + 1) * together):
            number, readers = head - place * together, weights.readers(head)
            value_map = (value.value_maps if tied else value.key_maps)[number]
            q_heads.append(key.key_maps[number].mT @ weights.q[readers])
            o_heads.append(weights.o[readers] @ value_map)
            if mean is not None:
                offset += (weights.o[readers] @ (weights.v[head] @ mean)).sum(0)
        ours = slice(place * together, (place + 1) * together)
        readers = slice(ours.start * weights.group, ours.stop * weights.group)
        q[readers], o[readers] = torch.cat(q_heads), torch.cat(o_heads)
        if tied and layer.freedom != "none":
            scale = _balance(matrices[0], q[readers], o[readers])
            matrices = [scale[:, None] * matrix for matrix in matrices]
            q[readers], o[readers] = q[readers] / scale[:, None], o[readers] / scale
        k[ours], v[ours] = matrices
    changed = weights.replaced(q=q, k=k, v=v, o=o)
    if mean is None or weights.output_bias is None:
        return changed
    return changed.replaced(output_bias=weights.output_bias + offset)


def _balance(root: Tensor, q: Tensor, o: Tensor) -> Tensor:
    """A factor for each coordinate that gives its rows in the root and in Q and O one size.

    The two coordinates of a pair have the same, so that it commutes with RoPE. Outputs do not
    change; training and rounding to 16 bits need it.
    """
    pair = (2, -1)
    ours = root.square().sum(1).unflatten(0, pair).sum(0)
    others = q.square().sum((0, 2)) + o.square().sum((0, 1))
    ratio = others.unflatten(0, pair).sum(0) / ours.clamp_min(1e-30)
    return ratio.clamp(1e-12, 1e12).pow(0.25).repeat(2)


def _centred(matrix: Tensor, mean: Tensor | None) -> Tensor:
    """The matrix with the bias for which the mean of its output is zero."""
    if mean is None:
        return matrix
    matrix = matrix.clone()
    matrix[:, -1] = -matrix[:, :-1] @ mean[:-1]
    return matrix


def _inputs(layer: Layer, weights: Weights, moments: Moments) -> Tensor:
    """The mean second moment of the inputs that the matrices have, a one included or not."""
    width = weights.k.shape[2]
    form = moments.inputs[:width, :width] / max(moments.tokens, 1)
    if layer.centred:
        mean = moments.mean[:width]
        form = form - mean[:, None] * mean
    return _damped(form)


def _query_costs(layer: Layer, weights: Weights, moments: Moments) -> Tensor:
    """The quadratic form of an error of each K before its norm, if it has one.

    A norm of heads divides a key by its size, here its mean size, and multiplies by a scale.
    """
    scale = layer.key_scale
    if scale is None:
        return moments.queries
    form = moments.inputs[: weights.k.shape[2], : weights.k.shape[2]] / max(moments.tokens, 1)
    squares = (weights.k @ form * weights.k).sum(2).mean(1).clamp_min(1e-30)
    return moments.queries * scale[:, None] * scale / squares[:, None, None]


def _procrustes(
    matrices: Sequence[Tensor], target: Tensor, inputs: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Scaled rotations that make each matrix from the target, and the matrices turned to it."""
    maps, turned = [], []
    size = (target @ inputs * target).sum().clamp_min(1e-30)
    for matrix in matrices:
        u, sizes, vh = torch.linalg.svd(matrix @ inputs @ target.mT)
        rotation, scale = u @ vh, sizes.sum() / size
        maps.append(scale * rotation)
        turned.append(rotation.mT @ matrix / scale.clamp_min(1e-12))
    return maps, turned


def _turns(frequencies: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rotations by the distances of keys from queries, and how often each is read."""
    distances = torch.cat([torch.arange(16), torch.logspace(4, 11, 24, base=2).round()]).double()
    # Each stands for the interval up to the next one.
    chances = torch.log1p(torch.cat([distances[1:], distances[-1:] * 1.2]))
    chances = chances - torch.log1p(distances)
    angles = -distances[:, None] * frequencies.double()
    first = torch.arange(len(frequencies))
    second = first + len(frequencies)
    turns = torch.eye(head_dim, dtype=torch.float64).repeat(len(distances), 1, 1)
    turns[:, first, first] = turns[:, second, second] = angles.cos()
    turns[:, first, second], turns[:, second, first] = -angles.sin(), angles.sin()
    return turns, chances / chances.sum()


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype)


def _mean(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(matrices)).mean(0)


def _unmapped(problem: Problem, matrix: Tensor) -> Root:
    identity = _identity(matrix)
    return Root(matrix, [identity] * len(problem.keys), [identity] * len(problem.values))


def _regression(target: Tensor, root: Root, problem: Problem) -> Tensor:
    """The map of the root with the least squared distance to the target."""
    moment = root.matrix @ problem.inputs @ root.matrix.mT
    inverse = torch.linalg.pinv(moment, hermitian=True, rtol=1e-12)
    return target @ problem.inputs @ root.matrix.mT @ inverse


def _eckart_young(problem: Problem) -> Root:
    roots = [_root(cost) for cost in (*problem.key_costs, *problem.value_costs)]
    stacked = torch.cat(
        [r @ m for r, m in zip(roots, (*problem.keys, *problem.values), strict=True)]
    )
    width = len(problem.keys[0])
    u = _left(stacked @ problem.inputs_root, width)
    maps = [torch.linalg.solve(r, part) for r, part in zip(roots, u.split(width), strict=True)]
    keys, reduced, found = len(problem.keys), u.mT @ stacked, []
    for ridge in RIDGES:
        # The first K is the root itself: RoPE is applied to it.
        first = _bounded(maps[0], ridge)
        inverse = torch.linalg.inv(first)
        own = [torch.eye(width, dtype=u.dtype), *(each @ inverse for each in maps[1:])]
        found.append(Root(first @ reduced, own[:keys], own[keys:]))
    return min(found, key=lambda root: _expected(problem, root))


def _expected(problem: Problem, root: Root) -> float:
    return error(problem, root) + rounding_error(problem, root)


def _refit(problem: Problem, root: Root) -> Root:
    """One round: the best root for these maps, then the best maps for that root."""
    maps = (*root.key_maps, *root.value_maps)
    costs = (*problem.key_costs, *problem.value_costs)
    targets = (*problem.keys, *problem.values)
    form = sum((m.mT @ c @ m for m, c in zip(maps, costs, strict=True)), torch.zeros(()))
    wanted = sum(
        (m.mT @ c @ t for m, c, t in zip(maps, costs, targets, strict=True)), torch.zeros(())
    )
    matrix = torch.linalg.solve(_damped(form), wanted)
    new = Root(matrix, root.key_maps, root.value_maps)
    return Root(
        matrix,
        [
            _complex_regression(k, cost, new, problem) if problem.freedom == "complex" else map_
            for k, cost, map_ in zip(problem.keys, problem.key_costs, root.key_maps, strict=True)
        ],
        [_regression(v, new, problem) for v in problem.values],
    )


def _complex_regression(target: Tensor, cost: Tensor, root: Root, problem: Problem) -> Tensor:
    """The map that commutes with RoPE nearest to the target: one complex number for each pair."""
    half = len(target) // 2
    # Coordinates i and i + half are a pair: [[a, −b], [b, a]].
    maps = torch.zeros(2 * half, 2 * half, 2 * half, dtype=target.dtype)
    for i in range(half):
        maps[i, i, i] = maps[i, i + half, i + half] = 1
        maps[half + i, i, i + half], maps[half + i, i + half, i] = -1, 1
    moment = root.matrix @ problem.inputs @ root.matrix.mT
    cross = cost @ target @ problem.inputs @ root.matrix.mT
    weighted = torch.einsum("ij,pjk,kl->pil", cost, maps, moment)
    form = torch.einsum("pil,qil->pq", weighted, maps)
    numbers = torch.linalg.solve(_damped(form), torch.einsum("pil,il->p", maps, cross))
    return torch.einsum("p,pij->ij", numbers, maps)


def _left(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors."""
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]


def _bounded(matrix: Tensor, ridge: float) -> Tensor:
    """The matrix with its smallest singular values raised to this share of the largest."""
    u, sizes, vh = torch.linalg.svd(matrix)
    return u @ (sizes.clamp_min(float(sizes[0]) * ridge)[:, None] * vh)


def _damped(form: Tensor) -> Tensor:
    """The form plus a small multiple of the identity: no direction is free."""
    size = form.diagonal().mean().clamp_min(1e-30)
    return form + DAMPING * size * torch.eye(len(form), dtype=form.dtype)


def _root(form: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(form)
    return vectors @ (values.clamp_min(0).sqrt()[:, None] * vectors.mT)
