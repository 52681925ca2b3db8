"""How the weights of a library's layer map to ours, as data.

A `Weight` names a tensor, or a linear layer with its bias, and the steps from it to ours. Steps
that select rearrange numbers; the others change their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qkvbench.variant import Plan, Role

Arrays = Mapping[str, np.ndarray]
# The sizes of a layer by name: `d_model`, `heads`, `kv_heads`, `head_dim`, and its own numbers.
Sizes = Mapping[str, float]


@dataclass(frozen=True)
class Transpose:
    """The matrix is stored as (inputs, outputs)."""


@dataclass(frozen=True)
class Stacked:
    """The rows of one role of a matrix that has those of Q, then K, then V."""

    role: Role


@dataclass(frozen=True)
class ByGroup:
    """The rows of one role of a matrix that has, for each head of K: its queries, K, V."""

    role: Role


@dataclass(frozen=True)
class Rows:
    """The rows from one place to another, both sums of sizes by name."""

    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairsToHalves:
    """RoPE rotates coordinates 2i and 2i+1 of a head: move them to i and i + half."""


@dataclass(frozen=True)
class SwapHalves:
    """RoPE rotates the other way: exchange the two coordinates of each pair."""


@dataclass(frozen=True)
class SpreadHalves:
    """RoPE rotates part of a head, whose pairs are as far apart as half of the whole head."""


@dataclass(frozen=True)
class Inputs:
    """A step on the columns of a matrix, which read the heads of V; a bias has none."""

    step: "PairsToHalves | SpreadHalves"


@dataclass(frozen=True)
class ScoreScale:
    """Scores are multiplied by a number, given or a size by name, and not by head_dim^-1/2."""

    by: float | str


@dataclass(frozen=True)
class PlusOne:
    """The scale is stored as its difference from 1."""


Selecting = (
    Transpose | Stacked | ByGroup | Rows | PairsToHalves | SwapHalves | SpreadHalves | Inputs
)
Step = Selecting | ScoreScale | PlusOne


@dataclass(frozen=True)
class Weight:
    """A tensor of the library by name, or a linear layer's, after these steps."""

    name: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Fill:
    """A tensor that the library does not have: one value everywhere."""

    value: float


AnyWeight = Weight | Fill
# By our name: ``q.scale``, or ``q`` for a linear layer's weight and bias.
Weights = Mapping[str, AnyWeight]


def separate(
    q: str = "q_proj", k: str = "k_proj", v: str = "v_proj", o: str = "o_proj", *steps: Step
) -> dict[str, AnyWeight]:
    """Four linear layers; Q and K after `steps`."""
    names = {"q": q, "k": k, "v": v, "o": o}
    return {ours: Weight(name, steps if ours in "qk" else ()) for ours, name in names.items()}


def mapped(weights: Weights, plan: Plan, sizes: Sizes, library: Arrays) -> dict[str, np.ndarray]:
    """Our tensors by name, from the library's.

    A bias that the library does not have is zero. ValueError if one of ours is left without a
    value, or if a number of the library's is not used.
    """
    found: dict[str, np.ndarray] = {}
    used: dict[str, list[np.ndarray]] = {name: [] for name in library}
    for parameter in plan.parameters:
        linear, _, part = parameter.name.rpartition(".")
        own = weights.get(parameter.name, weights.get(linear))
        match own:
            case None:
                raise ValueError(f"The row maps no weight to {parameter.name}.")
            case Fill(value):
                found[parameter.name] = np.full(parameter.shape, value)
            case Weight(name, steps):
                whole = name if parameter.name in weights else f"{name}.{part}"
                if whole not in library and part == "bias":
                    found[parameter.name] = np.zeros(parameter.shape)
                    continue
                array = library[whole]
                numbered = np.arange(array.size).reshape(array.shape)
                used[whole].append(_selected(numbered, steps, plan, sizes).ravel())
                array = _changed(_selected(array, steps, plan, sizes), steps, plan, sizes)
                found[parameter.name] = array.reshape(parameter.shape)
    for name, places in used.items():
        unused = library[name].size - np.unique(np.concatenate([[], *places])).size
        if unused:
            raise ValueError(f"{unused} of {library[name].size} numbers of {name} are not used.")
    return found


def _selected(array: np.ndarray, steps: tuple[Step, ...], plan: Plan, sizes: Sizes) -> np.ndarray:
    """The numbers that the steps select, in our order."""
    size = plan.geometry
    queries = size.heads // size.kv_heads
    for step in steps:
        match step:
            case Transpose():
                array = array.T
            case Stacked(role):
                rows = {"q": size.heads, "k": size.kv_heads, "v": size.kv_heads}
                ends = np.cumsum([count * size.head_dim for count in rows.values()])
                array = np.split(array, ends)[list(rows).index(role)]
            case ByGroup(role):
                parts = {"q": slice(queries), "k": slice(-2, -1), "v": slice(-1, None)}
                rest = array.shape[1:]
                groups = array.reshape(size.kv_heads, queries + 2, size.head_dim, *rest)
                array = groups[:, parts[role]].reshape(-1, *rest)
            case Rows(first, last):
                begin, end = (int(sum(sizes[name] for name in names)) for names in (first, last))
                array = array[begin : end or None]
            case PairsToHalves():
                assert plan.rope, "only a plan with RoPE has pairs"
                dims = plan.rope.dims
                places = [*range(0, dims, 2), *range(1, dims, 2), *range(dims, size.head_dim)]
                array = _within_heads(array, places)
            case SwapHalves():
                assert plan.rope, "only a plan with RoPE has halves"
                half, dims = plan.rope.dims // 2, plan.rope.dims
                places = [*range(half, dims), *range(half), *range(dims, size.head_dim)]
                array = _within_heads(array, places)
            case SpreadHalves():
                assert plan.rope, "only a plan with RoPE has halves"
                half, whole = plan.rope.dims // 2, size.head_dim // 2
                second = range(whole, whole + half)
                places = [*range(half), *second, *range(half, whole)]
                array = _within_heads(array, [*places, *range(whole + half, size.head_dim)])
            case Inputs(inner):
                array = _selected(array.T, (inner,), plan, sizes).T if array.ndim > 1 else array
            case _:
                pass
    return array


def _within_heads(array: np.ndarray, places: list[int]) -> np.ndarray:
    """The rows of each head in another order."""
    rest = array.shape[1:]
    return array.reshape(-1, len(places), *rest)[:, places].reshape(-1, *rest)


def _changed(array: np.ndarray, steps: tuple[Step, ...], plan: Plan, sizes: Sizes) -> np.ndarray:
    """The numbers after the steps that change them."""
    for step in steps:
        match step:
            case ScoreScale(by):
                factor = sizes[by] if isinstance(by, str) else by
                array = array * (factor * plan.geometry.head_dim**0.5)
            case PlusOne():
                array = array + 1
            case _:
                pass
    return array
