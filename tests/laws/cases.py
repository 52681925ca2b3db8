"""The cases over which the laws range, derived from the package. Sizes are small, odd, different.

A variant, suffix, position scheme or cache format that is new in the package is in every law
without an edit here. Quick runs use a covering array, in which every pair of values of every two
axes occurs, or a share of it if a case is expensive; slow runs the rest of it. Nightly runs add a
large random part of the whole product.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache, partial
from itertools import combinations, product, starmap
from typing import Any

import numpy as np
import pytest

from qkvbench.cost import CACHE_FORMATS, CacheDtype
from qkvbench.model import (
    CHANGES,
    ENCODER,
    POSITIONS,
    SELF,
    Alibi,
    Decoder,
    Encoder,
    Init,
    Learned,
    Model,
    NoPosition,
    Position,
    Rotary,
    Tokens,
    Vectors,
    alibi_of,
    position_written,
    rope_of,
    transformer,
    with_source,
    with_tower,
)
from qkvbench.model.rng import generator
from qkvbench.variant import (
    NO_ATTENTION,
    SUFFIXES,
    UNIFORM,
    Blocks,
    Constant,
    GatedDelta,
    Geometry,
    Latent,
    LayerBelow,
    LearnedMap,
    Normal,
    Own,
    Parameter,
    Plan,
    Rotation,
    Same,
    Variant,
    parse,
    resolve,
    sized,
    write,
)
from qkvbench.variant import every_variant as variants_without_head_sharing
from qkvbench.variant.catalogue import CATALOGUE

SIZE = sized(18, 3)  # head_dim 6: even, for RoPE
# For the catalogue, whose own head sharing has 2 key/value heads.
EVEN = sized(24, 4)
TIME, ITEMS, VOCABULARY = 7, 3, 13
SOURCE_TIME, SOURCE_VOCABULARY, FEATURES_IN = 5, 11, 7
LONGEST = 11
LENGTHS = (TIME, 3, 1)
SOURCE_LENGTHS = (5, 2, 4)
PADDING = (0, 3, 1)
# For each suffix with a number: the least, one inside the sequence, one beyond it.
NUMBERS = (1, 3, TIME + 2)
# For those whose numbers make no difference at the ends: a chunk is cached as a window, a factor of
# RoPE frequencies is no length.
INSIDE = (3,)
# Of a latent of K and V, and of one of Q.
RANK, QUERY_RANK = 5, 7
# Any matrix for each head.
FREE = partial(LearnedMap, kind="free")
# Of V alone, beside that of K.
VALUE_LATENT = Latent(RANK - 1, own=True)
MASKS = ("causal", "full")
STORAGES = ("whole", "pages", "growing")
# Shares of a head that RoPE rotates, if not the whole: one pair of 6 coordinates, and two.
SHARES = (1 / 3, 2 / 3)


def _resolves(variant: Variant, size: Geometry = SIZE) -> bool:
    try:
        resolve(variant, size)
    except ValueError:
        return False
    return True


def _with_shared_heads() -> list[Variant]:
    """Every variant of the package, latents, free maps, and each with one key/value head.

    And those that read K, V or both of the layer below, and those that attend uniformly.
    """
    whole = list(variants_without_head_sharing())
    keys, values = ({getattr(each, role): None for each in whole} for role in "kv")
    latents = [Variant(Own(), Latent(RANK), value) for value in (*values, Latent(RANK))]
    latents += [Variant(Own(), key, Latent(RANK)) for key in keys if key != Same("k")]
    query = Latent(QUERY_RANK)
    latents += [Variant(query, Own(), Own()), Variant(query, Latent(RANK), Latent(RANK))]
    latents += [Variant(query, Same("q"), Own())]
    mapped = [Variant(Own(), Own(), FREE("k")), Variant(Own(), FREE("v"), Own())]
    mapped += [Variant(Own(), FREE("q"), Same("q")), Variant(Own(), FREE("q"), LearnedMap("k"))]
    mapped.append(Variant(Own(), FREE("v"), Latent(RANK)))
    grouped = Latent(RANK - 3, SIZE.heads)
    latents += [Variant(Own(), grouped, grouped), Variant(grouped, Latent(RANK), VALUE_LATENT)]
    whole = list(dict.fromkeys([*whole, *latents, *mapped]))
    shared = [replace(variant, kv_heads=1) for variant in whole]
    lent = LayerBelow(1)
    below = [Variant(Own(), lent, lent), Variant(Own(), Own(), lent), Variant(Own(), lent, Own())]
    uniform = (UNIFORM, replace(UNIFORM, kv_heads=1))
    return [variant for variant in (*whole, *shared, *below, *uniform) if _resolves(variant)]


def _positions() -> list[Position]:
    """Every scheme of the package; those with a share of the head also with less than 1."""
    found: list[Position] = []
    for number, scheme in enumerate(POSITIONS.values()):
        position = scheme.make(LONGEST)
        found.append(position)
        if "share" in {field.name for field in fields(position)}:
            found.append(replace(position, share=SHARES[number % len(SHARES)]))
    return found


def _suffix_axes() -> dict[str, tuple[str, ...]]:
    """The suffixes that exclude each other, since they set the same fields, are one axis."""
    axes: dict[str, list[str]] = {}
    for text, suffix in SUFFIXES.items():
        numbers = NUMBERS if suffix.made is int and suffix.number != "chunk" else INSIDE
        values = [suffix.made(number * suffix.step) for number in numbers]
        if suffix.whole:
            values.append(suffix.made(*numbers * len(suffix.form.split("x"))))
        if suffix.made is Blocks:
            # Of three, two are seen: others hide nothing of a few tokens.
            values.append(Blocks(1, 3))
        written = [f"{text}{suffix.written(value)}" for value in values]
        axes.setdefault(" ".join(suffix.names), [""]).extend(written if suffix.number else [text])
    return {name: tuple(texts) for name, texts in axes.items()}


VARIANTS = _with_shared_heads()
# Without the control that has no layer.
CATALOGUED = [entry.variant for entry in CATALOGUE if entry.variant != NO_ATTENTION]
SCHEMES = _positions()
SUFFIX_AXES = _suffix_axes()


@dataclass(frozen=True)
class Case:
    """One combination: a variant, everything that is said of its scores, and how it decodes."""

    variant: Variant = CATALOGUED[0]
    position: Position = SCHEMES[0]
    suffix: str = ""
    mask: str = "causal"
    rows: CacheDtype = "fp64"
    padding: bool = False
    storage: str = "whole"

    def __str__(self) -> str:
        """The name of the case in a test's name."""
        words = (position_written(self.position), self.mask, self.rows, self.storage)
        return f"{write(self.full)} {' '.join(words)}{' padded' if self.padding else ''}"

    @property
    def full(self) -> Variant:
        """The variant with its suffixes."""
        return suffixed(self.variant, self.suffix)

    def plan(self, size: Geometry = SIZE) -> Plan:
        """The plan of one layer; ValueError if there is none."""
        return plan_of(self.full, self.position, causal=self.mask == "causal", size=size)

    @property
    def layers(self) -> int:
        """The fewest layers of a decoder in which the last one is of this variant in every way."""
        return 1 + self.full.reads_below

    def decoder(self, size: Geometry = SIZE) -> Model:
        """A decoder of as few layers with this variant."""
        return decoder(self.full, self.position, size, self.layers)


@cache
def suffixed(variant: Variant, suffix: str) -> Variant:
    """The variant with these suffixes instead of its own."""
    return replace(variant, scores=parse(f"q,k,v{suffix}").scores) if suffix else variant


def plan_of(
    variant: Variant | str,
    position: Position = SCHEMES[0],
    *,
    causal: bool = True,
    size: Geometry = SIZE,
) -> Plan:
    """The plan of a layer of self-attention at this position scheme."""
    return resolve(
        parse(variant) if isinstance(variant, str) else variant,
        size,
        causal=causal,
        rope=rope_of(position, size.head_dim),
        alibi=alibi_of(position),
    )


def alibi(variant: Variant | str) -> Position:
    """ALiBi; none if the variant makes no scores to which it could be added."""
    wanted = parse(variant) if isinstance(variant, str) else variant
    return NoPosition() if wanted.scores.linear else Alibi()


def rotary(variant: Variant | str) -> Position:
    """RoPE, for a law that needs some positions; none if V has fewer numbers than RoPE rotates."""
    try:
        plan_of(variant, Rotary())
    except ValueError:
        return NoPosition()
    return Rotary()


# The axes besides the suffixes on which it depends whether there is a plan.
PLAN_AXES = ("variant", "position", "mask")
# Axes that may agree two by two and not together: RoPE on V needs as many numbers as it rotates,
# and linear attention has no place for ALiBi.
TOGETHER_AXES = (
    ("variant", "position", "key_dim", "value_dim", "rope_head", "rope_value", "nope"),
    ("position", "linear", "nope"),
)
AXES: dict[str, Sequence[Any]] = {
    **SUFFIX_AXES,
    "mask": MASKS,
    "variant": VARIANTS,
    "position": SCHEMES,
    "rows": tuple(CACHE_FORMATS),
    "padding": (False, True),
    "storage": STORAGES,
}


def _case(chosen: Mapping[str, Any]) -> Case:
    suffix = "".join(chosen.get(axis, "") for axis in SUFFIX_AXES)
    others = {name: value for name, value in chosen.items() if name not in SUFFIX_AXES}
    return Case(suffix=suffix, **others)


def _possible(chosen: Mapping[str, Any]) -> bool:
    """False if `chosen` has no plan however the other axes are chosen.

    Of more than two values it must have been asked about each pair before.
    """
    if not chosen.keys() >= SUFFIX_AXES.keys():
        known = [(axis, chosen[axis]) for axis in (*SUFFIX_AXES, *PLAN_AXES) if axis in chosen]
        several = [[each for each in known if each[0] in axes] for axes in TOGETHER_AXES]
        return all(starmap(_agree, several if len(chosen) > 2 else [known]))
    suffix = "".join(chosen[axis] for axis in SUFFIX_AXES)
    return _has_plan(suffix, chosen.get("variant"), chosen.get("position"), chosen.get("mask"))


@cache
def _agree(*values: tuple[str, Any]) -> bool:
    """True if the values of some axes have a plan, with at most one value of another axis."""
    chosen = dict(values)
    thirds = [{}, *({axis: texts[1]} for axis, texts in SUFFIX_AXES.items())]
    for third in thirds:
        row = third | chosen
        suffix = "".join(row.get(axis, "") for axis in SUFFIX_AXES)
        if _has_plan(suffix, row.get("variant"), row.get("position"), row.get("mask")):
            return True
    return False


@cache
def _has_plan(
    suffix: str, variant: Variant | None, position: Position | None, mask: str | None
) -> bool:
    if variant and position and not _has_plan(suffix, None, None, mask):
        return False
    case = Case(variant or CATALOGUED[0], position or SCHEMES[0], suffix, mask or MASKS[0])
    try:
        case.plan()
    except ValueError:
        return False
    return True


# Suffixes that mean something in a causal layer without another.
ALONE = [
    text for texts in SUFFIX_AXES.values() for text in texts if _has_plan(text, None, None, None)
]
Possible = Callable[[Mapping[str, Any]], bool]
# A value of an axis, by the index of each.
Choice = tuple[int, int]


def pairwise(axes: Mapping[str, Sequence[Any]], possible: Possible) -> list[dict[str, Any]]:
    """A covering array: every possible pair of values of every two axes is in one of its rows.

    Greedy and deterministic. Each row begins with the first pair that is missing; each further
    axis takes the value that adds most missing pairs. `possible` judges rows that may lack axes,
    each pair of values before the whole row.
    """
    if len(axes) == 1:
        ((axis, values),) = axes.items()
        return [{axis: value} for value in values if possible({axis: value})]
    return _Covering(axes, possible).rows()


class _Covering:
    """A covering array in the making. Sets of choices are integers, a bit for each choice."""

    def __init__(self, axes: Mapping[str, Sequence[Any]], possible: Possible) -> None:
        self.names = list(axes)
        self.values = list(axes.values())
        self.possible = possible
        self.sizes = [len(values) for values in self.values]
        choices = [(axis, index) for axis, size in enumerate(self.sizes) for index in range(size)]
        self.bit = {choice: 1 << number for number, choice in enumerate(choices)}
        # Of each choice, those of other axes with which it is in no row yet.
        whole = (1 << len(choices)) - 1
        own = [sum(self.bit[axis, i] for i in range(size)) for axis, size in enumerate(self.sizes)]
        self.missing = {(axis, index): whole & ~own[axis] for axis, index in choices}
        # Of each choice, those of which it was not asked whether they agree, and those that do not.
        self.unknown = dict(self.missing)
        self.refused = dict.fromkeys(choices, 0)

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for one, other in combinations(range(len(self.names)), 2):
            for first in product([one], range(self.sizes[one])):
                for second in product([other], range(self.sizes[other])):
                    missing = self.missing[first] & self.bit[second]
                    row = missing and self._complete([first, second], len(found))
                    if row:
                        found.append(self._named(row))
                        self._is_covered(row)
        return found

    def _is_covered(self, row: Sequence[Choice]) -> None:
        chosen = self._set(row)
        for choice in row:
            self.missing[choice] &= ~chosen

    def _complete(self, row: list[Choice], number: int) -> list[Choice] | None:
        """The row with a value of every axis; None if there is no such row."""
        if not self._agree(row) or not self.possible(self._named(row)):
            return None
        have = {axis for axis, _ in row}
        axis = next((each for each in range(len(self.names)) if each not in have), None)
        if axis is None:
            return row
        chosen, size = self._set(row), self.sizes[axis]

        def gain(index: int) -> tuple[int, int]:
            # Among equals another one in each row.
            return -(self.missing[axis, index] & chosen).bit_count(), (index - number) % size

        indices = sorted(range(size), key=gain)
        longer = (self._complete([*row, (axis, index)], number) for index in indices)
        return next((found for found in longer if found), None)

    def _agree(self, row: Sequence[Choice]) -> bool:
        """True if the last choice of a row agrees with each other one."""
        *others, last = row
        chosen = self._set(others)
        if self.unknown[last] & chosen:
            for other in others:
                if not self.possible(self._named(sorted((other, last)))):
                    self.refused[last] |= self.bit[other]
            self.unknown[last] &= ~chosen
        return not self.refused[last] & chosen

    def _set(self, row: Iterable[Choice]) -> int:
        return sum(self.bit[choice] for choice in row)

    def _named(self, row: Iterable[Choice]) -> dict[str, Any]:
        return {self.names[axis]: self.values[axis][index] for axis, index in row}


@lru_cache(maxsize=64)
def covering(*names: str) -> tuple[Case, ...]:
    """A covering array of these axes, of all if none is named; other axes are at their defaults.

    "suffix" is all of its axes, "distinct" the variants that differ in how they are cached, "cross"
    leaves those that cross-attention can have.
    """
    return tuple(dict.fromkeys(_case(row) for row in pairwise(_axes(names), _possible)))


def random_cases(count: int, *names: str) -> list[Case]:
    """A random part of the whole product of these axes, for nightly runs."""
    rng = np.random.default_rng(0)
    axes = _axes(names)
    found: dict[Case, None] = {}
    while len(found) < count:
        chosen = {axis: values[rng.integers(len(values))] for axis, values in axes.items()}
        pairs = map(dict, combinations(chosen.items(), 2))
        if all(map(_possible, (*pairs, chosen))):
            found[_case(chosen)] = None
    return list(found)


def _axes(names: tuple[str, ...]) -> dict[str, Sequence[Any]]:
    wanted = {
        axis
        for name in names or ("suffix", *AXES)
        for axis in (SUFFIX_AXES if name == "suffix" else (name,))
    }
    axes = {axis: values for axis, values in AXES.items() if axis in wanted}
    axes |= {"variant": DISTINCT} if "distinct" in wanted else {}
    if "global_tokens" in axes:
        # They need a window and an encoder, so laws of their own hold them.
        axes["global_tokens"] = axes["global_tokens"][:1]
    if "cross" in wanted:
        axes["variant"] = [variant for variant in axes["variant"] if _crosses(variant)]
        for axis in SUFFIX_AXES.keys() & axes.keys():
            axes[axis] = list(filter(_suffix_crosses, axes[axis]))
    return axes


def _crosses(variant: Variant) -> bool:
    """True if the variant can be that of cross-attention: no layer below, and a softmax."""
    return not variant.reads_below and variant.scores.linear is None


def _suffix_crosses(text: str) -> bool:
    """True if a suffix can be that of cross-attention; also if it needs another one."""
    try:
        return _crosses(suffixed(CATALOGUED[0], text))
    except ValueError:
        return True


def reads_both_ways(variant: Variant) -> bool:
    """True if the variant can be that of an encoder."""
    return not isinstance(variant.scores.linear, GatedDelta)


def few(cases: Iterable[Case], count: int) -> list[Case]:
    """So many of the cases, chosen greedily so that most values of all axes occur."""
    left, found, known = {case: _values(case) for case in cases} if count else {}, [], set()
    while left and len(found) < count:
        best = max(left, key=lambda case: len(left[case] - known))
        known |= left.pop(best)
        found.append(best)
    return found


def can_be(case: Case, architecture: str) -> bool:
    """Whether this architecture of `architectures` can have the case's variant."""
    return reads_both_ways(case.full) or architecture in ("decoder", "encoder-decoder")


def one_of_each(cases: Iterable[Case], names: Iterable[str]) -> list[tuple[Case, str]]:
    """Every architecture with another one of a few cases that have most values."""
    names = list(names)
    left, found = few(cases, 2 * len(names)), []
    for name in names:
        case = next(each for each in left if can_be(each, name))
        left.remove(case)
        found.append((case, name))
    return found


def _values(case: Case) -> set[tuple[str, str]]:
    scores = {(f"score {name}", str(value)) for name, value in vars(case.full.scores).items()}
    return scores | {
        (name, str(getattr(case, name)))
        for name in ("variant", "position", "mask", "rows", "padding", "storage")
    }


# When a case runs, and those that are made at all: `conftest.py` sets it by what is selected.
WHEN = ("quick", "slow", "nightly")
MADE = WHEN[: 1 + WHEN.index(os.environ.get("QKVBENCH_CASES", "nightly"))]
MARKS = {"quick": (), "slow": pytest.mark.slow, "nightly": pytest.mark.nightly}


def at_their_time(cases: Iterable[tuple[Any, str]]) -> list[Any]:
    """Parameters of a test, each with one of `WHEN`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=MARKS[when])
        for case, when in cases
        if when in MADE
    ]


def drawn_nightly(count: int, *names: str) -> list[Case]:
    """Random cases for a nightly run; none otherwise."""
    return random_cases(count if "nightly" in MADE else 0, *names)


def every_case(*names: str, nightly: int = 1000, share: int = 1) -> pytest.MarkDecorator:
    """The law holds for a covering array of these axes, and nightly for `nightly` random cases.

    Quick for one of `share` cases of the array, if a case is expensive; slow for the others.
    """
    cases = dict.fromkeys(drawn_nightly(nightly, *names), "nightly")
    for number, case in enumerate(covering(*names)):
        cases[case] = "slow" if number % share else "quick"
    return parametrized(at_their_time(cases.items()))


def parametrized(cases: Iterable[Any]) -> pytest.MarkDecorator:
    """The test with each of the cases; their texts are its names."""
    return pytest.mark.parametrize("case", list(cases), ids=str)


def _caching(variant: Variant, size: Geometry = SIZE) -> object:
    """The way in which a variant is cached and read, at rotary positions."""
    plan = plan_of(variant, Rotary(), size=size)
    ops = (plan.key_ops_on_read, plan.absorbed_by_query, plan.absorbed_by_output)
    kinds = tuple(tuple(type(op) for op in part) for part in ops)
    rows = tuple((each.heads, each.width) for each in plan.cached)
    return kinds, rows, len(plan.roots), variant.reads_below


# One variant of each way to cache and read.
DISTINCT = list({_caching(variant): variant for variant in reversed(VARIANTS)}.values())[::-1]

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=write)
every_crossing = pytest.mark.parametrize("variant", list(filter(_crosses, VARIANTS)), ids=write)
every_catalogued = pytest.mark.parametrize("variant", CATALOGUED, ids=write)
every_distinct = pytest.mark.parametrize("variant", DISTINCT, ids=write)
every_position = pytest.mark.parametrize("position", SCHEMES, ids=position_written)
# Of the catalogue those that differ in it; the others nightly.
_FIRST = {_caching(variant, EVEN): variant for variant in reversed(CATALOGUED)}.values()
every_distinct_even = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(each, marks=() if each in _FIRST else pytest.mark.nightly)
        for each in CATALOGUED
    ],
    ids=write,
)
# Of those that compile for seconds: shared heads, learned rotations, latents.
FEW = ["q,k=v/1", "q,k=R(q),v=R(q)", "q,k=L(16),v=L(16)"]
some_catalogued = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(each, marks=() if write(each) in FEW else pytest.mark.nightly)
        for each in CATALOGUED
    ],
    ids=write,
)
# All outputs of an encoder: each kind of prediction, and each pooling of the whole.
OUTPUTS = [
    ("each position", "mean"),
    ("the whole", "mean"),
    ("the whole", "class token"),
    ("which position", "mean"),
]
every_output = pytest.mark.parametrize(
    ("predicts", "pooling"), OUTPUTS, ids=[", ".join(each) for each in OUTPUTS]
)


def drawn(parameters: Iterable[Parameter], seed: int = 0) -> dict[str, np.ndarray]:
    """fp64 values of learned tensors, so large that nothing is nearly linear, none at 0 or 1."""
    return {each.name: _drawn(each, seed) for each in parameters}


def _drawn(parameter: Parameter, seed: int) -> np.ndarray:
    draw = generator(seed, "laws", parameter.name).standard_normal(parameter.shape)
    match parameter.init:
        case Constant(value):
            return value + draw / 2
        case Normal(std="rotation_std"):
            return draw
        case Normal() | Rotation():
            return draw * 2 / parameter.shape[-1] ** 0.5


def streams(time: int = TIME, d_model: int = SIZE.d_model, seed: int = 1) -> np.ndarray:
    """A batch of streams of `time` tokens."""
    return np.random.default_rng(seed).normal(size=(ITEMS, time, d_model))


def whole_numbers(below: int, time: int = TIME, seed: int = 0) -> np.ndarray:
    """A batch of tokens below `below`."""
    return np.random.default_rng(seed).integers(below, size=(ITEMS, time))


AT_PLACES = Learned(TIME)
WORDS = Tokens(VOCABULARY)
INIT = Init(embedding_std=0.5, position_std=0.5)
TOKENS, SOURCE = whole_numbers(VOCABULARY), whole_numbers(SOURCE_VOCABULARY, SOURCE_TIME)
VECTORS = streams(TIME, FEATURES_IN, seed=2)


def _model(
    architecture: Decoder | Encoder,
    variant: Variant | str,
    position: Position,
    size: Geometry,
    layers: int = 2,
) -> Model:
    return transformer(
        "law",
        architecture,
        layers=layers,
        d_model=size.d_model,
        heads=size.heads,
        position=position,
        init=INIT,
        feed_forward=29,
    ).with_variant(parse(variant) if isinstance(variant, str) else variant)


def decoder(
    variant: Variant | str = "q,k,v",
    position: Position = SCHEMES[0],
    size: Geometry = EVEN,
    layers: int = 2,
    vocabulary: int = VOCABULARY,
    *,
    tied: bool = False,
) -> Model:
    """A small decoder with this variant in every layer."""
    return _model(Decoder(vocabulary, tied), variant, position, size, layers)


# Changes of blocks; together they have every one.
TOGETHER = (
    ("rms", "post-norm", "no-skip", "swiglu"),
    ("rms-no-scale", "output-norm", "bilinear"),
    ("dynamic-tanh", "both-norms", "parallel", "relu2"),
    ("no-norm", "parallel", "half-ff", "shared-ff"),
    ("no-ff", "tied-embeddings"),
    ("no-output-projection", "no-biases"),
    ("gelu",),
)


def changed(model: Model, changes: Iterable[str]) -> Model:
    """The same model with these changes of its blocks."""
    named = {*changes}
    return replace(model, changes=tuple(name for name in CHANGES if name in named))


def encoder(
    variant: Variant | str = "q,k,v",
    predicts: str = "the whole",
    pooling: str = "mean",
    inputs: Tokens | Vectors = WORDS,
    position: Position = SCHEMES[0],
    size: Geometry = EVEN,
    classes: int = TIME,
) -> Model:
    """A small encoder with this variant in every layer."""
    return _model(Encoder(inputs, classes, predicts, pooling=pooling), variant, position, size)


def translator(
    variant: Variant | str = "q,k,v", position: Position = Rotary(), size: Geometry = EVEN
) -> Model:
    """A small encoder-decoder with this variant at every place where it can be."""
    own = decoder(position=position, size=size)
    wanted = parse(variant) if isinstance(variant, str) else variant
    places = {SELF, ENCODER} if reads_both_ways(wanted) else {SELF}
    return with_source(own, Tokens(SOURCE_VOCABULARY), Learned(SOURCE_TIME)).with_variant(
        wanted, None if _crosses(wanted) else places
    )


def towers(
    variant: Variant | str = "q,k,v", position: Position = AT_PLACES, size: Geometry = EVEN
) -> Model:
    """Two small towers with this variant in every layer."""
    own = encoder(variant, inputs=Vectors(FEATURES_IN), position=position, size=size)
    return with_tower(own, Tokens(SOURCE_VOCABULARY), rotary(variant), 10)


Inputs = tuple[np.ndarray | None, ...]


def architectures(
    variant: Variant | str, position: Position, size: Geometry = EVEN
) -> dict[str, tuple[Model, Inputs]]:
    """A model of each architecture and output with this variant, and its inputs with padding."""
    lengths, source = np.array(LENGTHS), (SOURCE, np.array(SOURCE_LENGTHS))
    found: dict[str, tuple[Model, Inputs]] = {
        "decoder": (decoder(variant, position, size), (TOKENS,)),
        "encoder-decoder": (translator(variant, position, size), (TOKENS, None, *source)),
    }
    wanted = parse(variant) if isinstance(variant, str) else variant
    if not reads_both_ways(wanted):
        return found
    found["two towers"] = (towers(variant, position, size), (VECTORS, lengths, *source))
    for predicts, pooling in OUTPUTS:
        model = encoder(variant, predicts, pooling, position=position, size=size)
        found[f"{predicts}, {pooling}"] = (model, (TOKENS, lengths))
    return found
