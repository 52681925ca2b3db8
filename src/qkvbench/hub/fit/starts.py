"""Tied weights from untied ones: the starts of a conversion, in closed form.

One root r serves K and V of a key/value head. V may be any linear map of it, V = A r, since A folds
into the output projection: the output is O Σ a V = (O A) Σ a r. K may be any map that commutes with
RoPE, a complex number for each pair of coordinates, which folds into the query; without RoPE, any
map. So a tie costs rank and nothing else: head_dim numbers have to carry both K and V.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkvbench.hub.fit.moments import Moments
from qkvbench.hub.fit.projections import Layer, Weights
from qkvbench.hub.fit.roots import (
    DEFAULT_ROWS,
    ROUNDINGS,
    Problem,
    Root,
    Rounding,
    best_scale,
    error,
    noise_costs,
    rounding_error,
    row_costs,
    row_noise,
    row_squares,
)

# Smallest singular values that are inverted, as shares of the largest. With the first fp32 weights
# stay exact; the others are for roots whose V would be a difference of large numbers.
RIDGES = (1e-5, 1e-3, 3e-3, 1e-2, 3e-2)
# The same for rows in few bits, from which rounds of least squares go on.
FEW_BIT_RIDGE = 0.1
FEW_BIT_ROUNDS = 40
# A moment is damped by this share of its mean eigenvalue.
DAMPING = 1e-6
ROUNDS = 20


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
    moment = _moment(problem, root.matrix, row_costs(problem, root).diagonal())
    maps = [_regression(value, root, problem, moment) for value in problem.values]
    return replace(root, value_maps=maps)


def whiten(problem: Problem) -> Root:
    """The root with the smallest expected error of the output.

    Stacked and weighted by their costs and by the inputs' moment, K and V of all heads are one
    matrix, and the best root is its best approximation of rank head_dim (Eckart and Young). With
    RoPE and several heads in one, K's maps are restricted, and rounds of least squares follow.
    The error includes that of rounded rows: no root may need more digits than a cache stores.
    """
    if problem.rounding.few_bits:
        return _whiten_for_few_bits(problem)
    if problem.freedom == "any" or len(problem.keys) == 1:
        return min(_eckart_young(problem, RIDGES), key=lambda root: _expected(problem, root))
    return _settle(problem, regress(problem), ROUNDS)


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
    root, form = keep_k(problem), key_cost
    matrix = root.matrix
    for _ in range(ROUNDS):
        moment = _moment(problem, matrix, form.diagonal())
        turned = torch.einsum("d,dij,jk,dlk->il", chances, turns, moment, turns)
        cross = problem.inputs @ matrix.mT @ mean_turn.mT
        maps = [torch.linalg.solve(_damped(turned), (v @ cross).mT).mT for v in problem.values]
        root = Root(matrix, [_identity(matrix)] * len(problem.keys), maps)
        form, wanted = key_cost, wanted_keys
        for value_map, cost, value in zip(maps, problem.value_costs, problem.values, strict=True):
            read = value_map.mT @ cost
            inner = read @ value_map
            form = form + torch.einsum("d,dji,jk,dkl->il", chances, turns, inner, turns)
            wanted = wanted + mean_turn.mT @ read @ value
        matrix = torch.linalg.solve(_rounded(problem, form, row_squares(problem, root)), wanted)
    return _scaled(problem, root, form.diagonal())


STARTS: Mapping[str, Callable[[Problem], Root]] = {
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


@dataclass(frozen=True)
class Start:
    """How the weights of a changed layer begin, written `refitted` or `refitted:int4`.

    ``rows`` is what the cache will store, which those with the least expected error know of.
    """

    name: str
    rows: str = DEFAULT_ROWS

    @property
    def is_fitted(self) -> bool:
        """Whether it reads a text."""
        return self.name in FITTED_STARTS

    @property
    def has_least_error(self) -> bool:
        """Whether it is the one with the least expected error."""
        return self.name in LEAST_ERROR


def parse_start(text: str) -> Start:
    """The start of such a text; ValueError if there is none."""
    name, colon, rows = text.partition(":")
    if name not in STARTS:
        raise ValueError(f"There is no start '{name}'; there are {', '.join(STARTS)}.")
    if colon and (name not in LEAST_ERROR or rows not in ROUNDINGS):
        known = [f"{one}:{each}" for one in LEAST_ERROR for each in ROUNDINGS]
        raise ValueError(f"There is no start '{text}'; for rows there are {', '.join(known)}.")
    return Start(name, rows or DEFAULT_ROWS)


def problems(
    layer: Layer,
    weights: Weights,
    moments: Moments,
    kv_heads: int,
    rounding: Rounding = ROUNDINGS[DEFAULT_ROWS],
) -> list[Problem]:
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
                rounding,
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
        if tied and layer.freedom != "none" and not key.scaled:
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
    change; training and rounding to 16 bits need it. It is a power of two, which rounds nothing.
    """
    pair = (2, -1)
    ours = root.square().sum(1).unflatten(0, pair).sum(0)
    others = q.square().sum((0, 2)) + o.square().sum((0, 1))
    ratio = others.unflatten(0, pair).sum(0) / ours.clamp_min(1e-30)
    return ratio.clamp(1e-12, 1e12).pow(0.25).log2().round().exp2().repeat(2)


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


def _regression(target: Tensor, root: Root, problem: Problem, moment: Tensor) -> Tensor:
    """The map of the root, of this moment, with the least squared distance to the target."""
    inverse = torch.linalg.pinv(moment, hermitian=True, rtol=1e-12)
    return target @ problem.inputs @ root.matrix.mT @ inverse


def _eckart_young(problem: Problem, ridges: Sequence[float]) -> list[Root]:
    """The best root without rounding, its smallest directions raised to each of these shares."""
    roots = [_root(cost) for cost in (*problem.key_costs, *problem.value_costs)]
    stacked = torch.cat(
        [r @ m for r, m in zip(roots, (*problem.keys, *problem.values), strict=True)]
    )
    width = len(problem.keys[0])
    u = _left(stacked @ problem.inputs_root, width)
    maps = [torch.linalg.solve(r, part) for r, part in zip(roots, u.split(width), strict=True)]
    keys, reduced, found = len(problem.keys), u.mT @ stacked, []
    for ridge in ridges:
        # The first K is the root itself: RoPE is applied to it.
        first = _bounded(maps[0], ridge)
        inverse = torch.linalg.inv(first)
        own = [torch.eye(width, dtype=u.dtype), *(each @ inverse for each in maps[1:])]
        found.append(Root(first @ reduced, own[:keys], own[keys:]))
    return found


def _whiten_for_few_bits(problem: Problem) -> Root:
    """The same if rounding spoils small numbers beside large ones: rounds of least squares.

    In coordinates of K and V, which are fewer than those of the input and serve as well.
    """
    targets = torch.cat([*problem.keys, *problem.values])
    inputs = targets @ problem.inputs @ targets.mT
    own = torch.eye(len(targets), dtype=targets.dtype).split(len(problem.keys[0]))
    keys = len(problem.keys)
    small = replace(
        problem, keys=own[:keys], values=own[keys:], inputs=inputs, inputs_root=_root(inputs)
    )
    if problem.freedom == "any" or keys == 1:
        [begun] = _eckart_young(small, (FEW_BIT_RIDGE,))
    else:
        begun = regress(small)
    found = _settle(small, begun, FEW_BIT_ROUNDS)
    scaled = _scaled(small, found, row_costs(small, found).diagonal())
    return replace(scaled, matrix=scaled.matrix @ targets)


def _settle(problem: Problem, root: Root, rounds: int) -> Root:
    """The best root of so many rounds of least squares."""
    best = root
    for _ in range(rounds):
        root = _refit(problem, root)
        best = min(best, root, key=lambda one: _expected(problem, one))
    return best


def _expected(problem: Problem, root: Root) -> float:
    return error(problem, root) + rounding_error(problem, root)


def _refit(problem: Problem, root: Root) -> Root:
    """One round: the best root for these maps, then the best maps for that root."""
    costs = (*problem.key_costs, *problem.value_costs)
    targets = (*problem.keys, *problem.values)
    form = row_costs(problem, root)
    wanted = [m.mT @ c @ t for m, c, t in zip(root.maps, costs, targets, strict=True)]
    matrix = torch.linalg.solve(
        _rounded(problem, form, row_squares(problem, root)), torch.stack(wanted).sum(0)
    )
    new, moment = replace(root, matrix=matrix), _moment(problem, matrix, form.diagonal())
    if len(problem.keys) == 1 or problem.freedom == "none":
        key_maps = root.key_maps
    elif problem.freedom == "any":
        key_maps = [_regression(key, new, problem, moment) for key in problem.keys]
    else:
        key_maps = [
            _complex_regression(key, cost, new, problem, moment)
            for key, cost in zip(problem.keys, problem.key_costs, strict=True)
        ]
    values = [_regression(v, new, problem, moment) for v in problem.values]
    return replace(new, key_maps=key_maps, value_maps=values)


def _moment(problem: Problem, matrix: Tensor, costs: Tensor) -> Tensor:
    """The second moment of rows, with their rounding if they are stored in few bits."""
    moment = matrix @ problem.inputs @ matrix.mT
    if not problem.rounding.few_bits:
        return moment
    return moment + torch.diag(row_noise(problem, costs, moment.diagonal()))


def _rounded(problem: Problem, form: Tensor, squares: Tensor) -> Tensor:
    """The form of a row's error, damped, with what large rows cost if they are in few bits."""
    form, costs = _damped(form), form.diagonal()
    if not problem.rounding.few_bits:
        return form
    return form + torch.diag(noise_costs(problem, costs, squares))


def _scaled(problem: Problem, root: Root, costs: Tensor) -> Root:
    """The root with the scale that few bits ask for; its numbers may have any in others."""
    if not problem.rounding.few_bits:
        return root
    scale = best_scale(problem, costs, row_squares(problem, root))
    key_maps, value_maps = ([m / scale for m in maps] for maps in (root.key_maps, root.value_maps))
    return Root(scale[:, None] * root.matrix, key_maps, value_maps, scaled=True)


def _complex_regression(
    target: Tensor, cost: Tensor, root: Root, problem: Problem, moment: Tensor
) -> Tensor:
    """The map that commutes with RoPE nearest to the target: one complex number for each pair."""
    half = len(target) // 2
    # Coordinates i and i + half are a pair: [[a, −b], [b, a]].
    maps = torch.zeros(2 * half, 2 * half, 2 * half, dtype=target.dtype)
    for i in range(half):
        maps[i, i, i] = maps[i, i + half, i + half] = 1
        maps[half + i, i, i + half], maps[half + i, i + half, i] = -1, 1
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
