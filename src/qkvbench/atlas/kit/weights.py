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
class HeadRows:
    """The rows of every head from one place to another, of so many; sums of sizes by name."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    every: tuple[str, ...]


@dataclass(frozen=True)
class LastToFront:
    """RoPE rotates the last coordinates of a head: move them to the front."""


@dataclass(frozen=True)
class PairsToHalves:
    """RoPE rotates coordinates 2i and 2i+1 of a head: move them to i and i + half.

    ``width``: the numbers of a head, a size by name.
    """

    width: str = "head_dim"


@dataclass(frozen=True)
class SwapHalves:
    """RoPE rotates the other way: exchange the two coordinates of each pair."""


@dataclass(frozen=True)
class SpreadHalves:
    """RoPE rotates part of a head, whose pairs are as far apart as half of the whole head."""


@dataclass(frozen=True)
class Inputs:
    """A step on the columns of a matrix, which read the heads of V; a bias has none."""

    step: "PairsToHalves | SpreadHalves | LastToFront"


@dataclass(frozen=True)
class ScoreScale:
    """Scores are multiplied by a number, given or a size by name, and not by head_dim^-1/2."""

    by: float | str


@dataclass(frozen=True)
class Times:
    """Multiplied by a size by name."""

    by: str


@dataclass(frozen=True)
class PlusOne:
    """The scale is stored as its difference from 1."""


Reordering = LastToFront | PairsToHalves | SwapHalves | SpreadHalves
Selecting = Transpose | Stacked | ByGroup | Rows | HeadRows | Inputs | Reordering
Step = Selecting | ScoreScale | Times | PlusOne


@dataclass(frozen=True)
class Weight:
    """A tensor of the library by name, or a linear layer's, after these steps.

    With ``each``, a size by name, it is so many tensors, whose number is ``{}`` in the name.
    """

    name: str
    steps: tuple[Step, ...] = ()
    each: str = ""


@dataclass(frozen=True)
class Fill:
    """A tensor that the library does not have: one value everywhere."""

    value: float


AnyWeight = Weight | Fill
# Learned numbers of heads, which are no matrices.
HEAD_VECTORS = ("scale", "shift")
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
    source = _Source(plan, sizes, library)
    found: dict[str, np.ndarray] = {}
    for parameter in plan.parameters:
        linear, _, part = parameter.name.rpartition(".")
        # Of a linear layer one row says both.
        suffix = "" if parameter.name in weights else f".{part}"
        match weights.get(parameter.name, weights.get(linear)):
            case None:
                raise ValueError(f"The row maps no weight to {parameter.name}.")
            case Fill(value):
                array = np.full(parameter.shape, value)
            case Weight() as own:
                names = [f"{name}{suffix}" for name in _names(own, sizes)]
                if part == "bias" and not set(names) <= set(library):
                    array = np.zeros(parameter.shape)
                else:
                    array = source.tensor(names, own.steps, vector=part in HEAD_VECTORS)
        found[parameter.name] = array.reshape(parameter.shape)
    source.check()
    return found


class _Source:
    """The tensors of the library, and which of their numbers are used."""

    def __init__(self, plan: Plan, sizes: Sizes, library: Arrays) -> None:
        self._plan, self._sizes, self._library = plan, sizes, library
        self._used: dict[str, list[np.ndarray]] = {name: [] for name in library}

    def tensor(self, names: list[str], steps: tuple[Step, ...], *, vector: bool) -> np.ndarray:
        """The tensors with these names, after the steps; `vector`: rows without columns."""
        arrays = [self._library[name] for name in names]
        shape = (-1,) if vector else arrays[0].shape
        for name, array in zip(names, arrays, strict=True):
            numbered = np.arange(array.size).reshape(shape)
            self._used[name].append(_selected(numbered, steps, self._plan, self._sizes).ravel())
        whole = np.concatenate(arrays).reshape(shape) if vector else arrays[0]
        selected = _selected(whole, steps, self._plan, self._sizes)
        return _changed(selected, steps, self._plan, self._sizes)

    def check(self) -> None:
        """Refuse a map that leaves a number of the library's."""
        for name, places in self._used.items():
            size = self._library[name].size
            unused = size - np.unique(np.concatenate([[], *places])).size
            if unused:
                raise ValueError(f"{unused} of {size} numbers of {name} are not used.")


def _names(weight: Weight, sizes: Sizes) -> list[str]:
    """The names of its tensors in the library."""
    if not weight.each:
        return [weight.name]
    return [weight.name.format(number) for number in range(int(sizes[weight.each]))]


def _selected(array: np.ndarray, steps: tuple[Step, ...], plan: Plan, sizes: Sizes) -> np.ndarray:
    """The numbers that the steps select, in our order."""
    size = plan.geometry
    for step in steps:
        rest = array.shape[1:]
        match step:
            case Transpose():
                array = array.T
            case Stacked(role):
                rows = {"q": size.heads, "k": size.kv_heads, "v": size.kv_heads}
                ends = np.cumsum([count * size.head_dim for count in rows.values()])
                array = np.split(array, ends)[list(rows).index(role)]
            case ByGroup(role):
                queries = size.heads // size.kv_heads
                parts = {"q": slice(queries), "k": slice(-2, -1), "v": slice(-1, None)}
                groups = array.reshape(size.kv_heads, queries + 2, size.head_dim, *rest)
                array = groups[:, parts[role]].reshape(-1, *rest)
            case Rows(first, last):
                array = array[_sum(first, sizes) : _sum(last, sizes) or None]
            case HeadRows(first, last, every):
                heads = array.reshape(-1, _sum(every, sizes), *rest)
                array = heads[:, _sum(first, sizes) : _sum(last, sizes)].reshape(-1, *rest)
            case Inputs(inner):
                array = _selected(array.T, (inner,), plan, sizes).T if array.ndim > 1 else array
            case LastToFront() | PairsToHalves() | SwapHalves() | SpreadHalves():
                places = _places(step, plan, sizes)
                array = array.reshape(-1, len(places), *rest)[:, places].reshape(-1, *rest)
            case ScoreScale() | Times() | PlusOne():
                pass
    return array


def _places(step: Reordering, plan: Plan, sizes: Sizes) -> list[int]:
    """The old place of each coordinate of a head; without RoPE any order is as good."""
    dims = plan.rope.dims if plan.rope else 0
    width, half = int(sizes["head_dim"]), dims // 2
    match step:
        case LastToFront():
            return [*range(width - dims, width), *range(width - dims)]
        case PairsToHalves(name):
            return [*range(0, dims, 2), *range(1, dims, 2), *range(dims, int(sizes[name]))]
        case SwapHalves():
            return [*range(half, dims), *range(half), *range(dims, width)]
        case SpreadHalves():
            middle = width // 2
            first, second = range(half), range(middle, middle + half)
            return [*first, *second, *range(half, middle), *range(middle + half, width)]


def _sum(names: tuple[str, ...], sizes: Sizes) -> int:
    return int(sum(sizes[name] for name in names))


def _changed(array: np.ndarray, steps: tuple[Step, ...], plan: Plan, sizes: Sizes) -> np.ndarray:
    """The numbers after the steps that change them."""
    for step in steps:
        match step:
            case ScoreScale(by):
                factor = sizes[by] if isinstance(by, str) else by
                array = array * (factor * plan.score_width**0.5)
            case Times(by):
                array = array * sizes[by]
            case PlusOne():
                array = array + 1
            case _:
                pass
    return array
