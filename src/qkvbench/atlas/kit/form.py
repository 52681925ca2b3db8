"""A form of attention that is in use: its equation, and the layers of a library that have it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from qkvbench.atlas.kit.equality import BOUND, ROUNDED_BOUND, Equality, equalities
from qkvbench.atlas.kit.weights import Sizes, Weights
from qkvbench.model import NoPosition, Position
from qkvbench.model.positions import alibi_of, rope_of
from qkvbench.variant import NORM_EPS, Geometry, LayerBelow, Plan, parse, resolve, resolve_cross

# Compared at this size: heads of K and V as many as heads, a quarter of them, or one.
COMMON: Sizes = {"d_model": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64}
# Tokens of the forward pass whose products are counted.
TOKENS = 1024
HALF_BYTES = 2

# The name of a size in a library's config, its value, or a function of the config.
Reading = str | float | Callable[[Any], float]
CONFIG: Mapping[str, Reading] = {
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window": "sliding_window",
    "norm_eps": lambda config: next(
        (
            getattr(config, name)
            for name in ("rms_norm_eps", "layer_norm_eps", "norm_eps")
            if hasattr(config, name)
        ),
        NORM_EPS,
    ),
}

Site = Literal["decoder", "encoder", "cross"]


@dataclass(frozen=True)
class Kept:
    """A tensor that a library keeps for each past token: `heads` rows of `width` numbers.

    Each is a size by name, or a number.
    """

    name: str
    heads: str | int
    width: str | int

    def numbers(self, sizes: Sizes) -> int:
        """Numbers kept for each token."""
        return int(_size(self.heads, sizes) * _size(self.width, sizes))

    @property
    def text(self) -> str:
        """The tensor and its size in names: ``K (kv_heads × head_dim)``."""
        return f"{self.name} ({self.heads} × {self.width})"


GROUPED = (Kept("K", "kv_heads", "head_dim"), Kept("V", "kv_heads", "head_dim"))
EXPANDED = (Kept("K", "heads", "head_dim"), Kept("V", "heads", "head_dim"))


@dataclass(frozen=True)
class Lender:
    """The module of a layer below whose K and V are read, and how its weights map to ours."""

    at: str
    weights: Weights


@dataclass(frozen=True)
class Layer:
    """A layer of transformers that has a form, and how its weights map to ours.

    ``attention`` is its class in the folder ``model`` of the library. In a ``network`` with this
    ``config`` it is the module ``at``; if the output projection is another module, ``reads`` is the
    part whose input is the layer's input, and ``writes`` the one whose output is its output.
    ``own`` are the sizes of the network if nothing is configured, of which the config has the names
    ``sizes``, and ``position`` the RoPE settings of ``config``. ``feeds`` is the input of the
    network. ``rounds`` is what the library rounds to fp32 whatever its dtype, if it does, and
    ``counts_padding`` what makes it another function of a padded text, if something does. If K and
    V are those of a layer below, it is the ``lender``.
    """

    model: str
    attention: str
    network: str
    at: str
    config: Mapping[str, Any]
    own: Sizes
    weights: Weights
    sizes: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    position: Position | None = None
    reads: str = ""
    writes: str = ""
    feeds: Literal["tokens", "decoder tokens", "two texts", "pixels", "frames"] = "tokens"
    rounds: str = ""
    counts_padding: str = ""
    lender: Lender | None = None

    @property
    def name(self) -> str:
        """The class, as it is found in the library: ``llama LlamaAttention``."""
        return f"{self.model} {self.attention}"

    @property
    def bound(self) -> float:
        """The largest difference in fp64 with which it is equal."""
        return ROUNDED_BOUND if self.rounds else BOUND


@dataclass(frozen=True)
class Form:
    """A form of attention: one equation, one position scheme, one site.

    In ``equation`` sizes are named: ``q,k,v/{kv_heads}+window{window}``; None if the notation lacks
    something, which ``lacks`` says. ``below`` is that of the layers below which are read, if any
    are. ``numbers`` are the sizes of its own at the common geometry.
    ``library_keeps`` are the tensors in the cache of transformers. ``used_by`` names classes beside
    those of ``layers``.
    """

    name: str
    about: str
    equation: str | None
    source: str
    position: Position = NoPosition()
    site: Site = "decoder"
    numbers: Sizes = field(default_factory=dict[str, float])
    library_keeps: tuple[Kept, ...] = GROUPED
    layers: tuple[Layer, ...] = ()
    used_by: tuple[str, ...] = ()
    lacks: str = ""
    below: str = ""

    @property
    def common(self) -> Sizes:
        """The sizes at which forms are compared."""
        equation = self.equation or ""
        grouped = "{kv_heads}" in equation + self.below
        kv_heads = COMMON["kv_heads"] if grouped else COMMON["heads"]
        kv_heads = 1 if "/1" in equation else kv_heads
        return {**COMMON, "kv_heads": kv_heads, **self.numbers}

    @property
    def users(self) -> tuple[str, ...]:
        """Every class that has this form, as far as is known."""
        return (*dict.fromkeys(layer.name for layer in self.layers), *self.used_by)

    @property
    def proved(self) -> bool:
        """True if it has layers and each was measured to be equal."""
        found = [(layer, self.measured(layer)) for layer in self.layers]
        return bool(found) and all(each and each.largest < layer.bound for layer, each in found)

    def own(self, layer: Layer) -> Sizes:
        """The sizes of a layer's own model; what its config leaves open as at the common ones."""
        return {**self.numbers, **layer.own}

    def key(self, layer: Layer) -> str:
        """A layer among all of the atlas: ``rotary-grouped: llama LlamaAttention``."""
        return f"{self.name}: {layer.name}"

    def measured(self, layer: Layer) -> Equality | None:
        """How far the layer is from the library's; None if it was not measured."""
        return equalities().get(self.key(layer))

    def written(self, sizes: Sizes) -> str:
        """The equation at these sizes."""
        assert self.equation, "only a form with an equation has one"
        return _written(self.equation, sizes)

    def plan(self, sizes: Sizes, position: Position | None = None) -> Plan:
        """The plan at these sizes; positions are the form's unless given."""
        position = position or self.position
        variant = parse(self.written(sizes))
        width = int(sizes["head_dim"])
        geometry = Geometry(int(sizes["d_model"]), int(sizes["heads"]), int(sizes["heads"]), width)
        if self.site == "cross":
            return resolve_cross(variant, geometry)
        made = partial(
            resolve,
            geometry=geometry,
            causal=self.site == "decoder",
            rope=rope_of(position, width),
            alibi=alibi_of(position),
            norm_eps=sizes.get("norm_eps", NORM_EPS),
        )
        if not self.below:
            return made(variant)
        read = [each.layers for each in (variant.k, variant.v) if isinstance(each, LayerBelow)]
        # As few layers as it takes for the first one to be none of the others.
        first = "first" in read or variant.scores.first_value
        layers = first + max(each for each in (*read, 0) if isinstance(each, int))
        return made(variant, below=[made(parse(_written(self.below, sizes)))] * layers)

    def library_bytes(self, sizes: Sizes) -> int:
        """Bytes that transformers keeps for each past token of one layer, at 2 bytes a number."""
        return HALF_BYTES * sum(each.numbers(sizes) for each in self.library_keeps)


def _size(name: str | int, sizes: Sizes) -> float:
    return sizes[name] if isinstance(name, str) else name


def _written(equation: str, sizes: Sizes) -> str:
    return equation.format(**{name: _whole(each) for name, each in sizes.items()})


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
