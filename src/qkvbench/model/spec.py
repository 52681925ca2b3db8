"""A model as a value: one block spec per layer, a geometry, positions and an architecture."""

import itertools
import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, get_args

from qkvbench.model.changes import CHANGES, TIED, ordered
from qkvbench.model.cycle import Cycle, CycleText, VariantText, shortest_cycle, write_cycle
from qkvbench.model.parts import AnyFeedForward, AnyNorm, LayerNorm, NormPlace, Residual
from qkvbench.model.positions import Learned, Position, alibi_of, rope_of
from qkvbench.variant import (
    CANONICAL,
    NO_ATTENTION,
    ROLES,
    Constant,
    Geometry,
    Lender,
    Normal,
    Parameter,
    Plan,
    Role,
    Variant,
    linear,
    resolve,
    resolve_cross,
    write,
)


@dataclass(frozen=True)
class Attention:
    """The attention of one block."""

    variant: VariantText


@dataclass(frozen=True)
class Block:
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)); a part may be left out.

    If there is ``cross``, x + cross(norm(x), source) comes between. ``norm_place`` and ``residual``
    say what differs from this: a parallel feed-forward reads the norm that attention reads.
    ``biases``: the matrices have some; ``output_projection``: attention has one; a
    ``shared_feed_forward`` has the weights of the first block's.
    """

    attention: Attention | None
    feed_forward: AnyFeedForward | None
    norm: AnyNorm = LayerNorm()
    cross: Attention | None = None
    norm_place: NormPlace = "input"
    residual: Residual = "sequential"
    biases: bool = True
    output_projection: bool = True
    shared_feed_forward: bool = False

    def __post_init__(self) -> None:
        """Refuse parallel parts whose norms or sources differ, and nothing that is shared."""
        if self.residual == "parallel" and (self.cross or self.norm_place not in ("input", "both")):
            raise ValueError(
                "Parallel parts read one normed input, so there is no cross-attention, and the "
                "norm is on the input; leave out ~parallel, or the other change."
            )
        if self.shared_feed_forward and self.feed_forward is None:
            raise ValueError("Without a feed-forward there is none to share; leave out ~shared-ff.")

    def norms(self, part: str, *, attends: bool) -> tuple[str, ...]:
        """The names of a part's norms; `attends`: the block has self-attention."""
        own = (f"{part}_norm",) if self.norm_place != "output" else ()
        if part == "feed_forward" and self.residual == "parallel" and attends:
            own = ()
        return (*own, f"{part}_output_norm") if self.norm_place in ("output", "both") else own


@dataclass(frozen=True)
class Tokens:
    """The input is a sequence of whole numbers below `vocabulary`, looked up in a table."""

    vocabulary: int
    kind: Literal["tokens"] = "tokens"

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """The learned tensors of its embedding."""
        shape = (self.vocabulary, d_model)
        return (Parameter("table", shape, Normal("embedding_std"), dtype="full"),)

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return 0 * d_model


@dataclass(frozen=True)
class Vectors:
    """The input is a sequence of vectors with `features` coordinates, mapped by one matrix."""

    features: int
    kind: Literal["vectors"] = "vectors"

    def parameters(self, d_model: int) -> tuple[Parameter, ...]:
        """The learned tensors of its embedding."""
        return linear("vectors", d_model, self.features)

    def macs(self, d_model: int) -> int:
        """Multiply-accumulates for each token."""
        return self.features * d_model


@dataclass(frozen=True)
class Decoder:
    """A causal stack that predicts the next token; `tied`: the output matrix is the table."""

    vocabulary: int
    tied: bool = False
    kind: Literal["decoder"] = "decoder"

    def head(self, d_model: int) -> tuple[Parameter, ...]:
        """The learned tensors after the last norm."""
        return () if self.tied else linear("output", self.vocabulary, d_model, bias=False)

    def head_macs(self, d_model: int, tokens: int) -> int:
        """Multiply-accumulates after the last norm."""
        return tokens * d_model * self.vocabulary


Pooling = Literal["mean", "class token"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Encoder:
    """A bidirectional stack with one prediction per position, or one for them all.

    "the whole": one prediction per sequence, from mean pooling or a class token.
    "which position" names one of as many as there are `classes`, by one score for each.
    """

    inputs: Tokens | Vectors
    classes: int
    predicts: Literal["each position", "the whole", "which position"]
    kind: Literal["encoder"] = "encoder"
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        """Refuse a class token that nothing reads."""
        if self.pooling == "class token" and self.predicts != "the whole":
            raise ValueError(
                f"A class token tells the whole, and here {self.predicts} is predicted; "
                "leave pooling at 'mean'."
            )

    @property
    def added(self) -> int:
        """How many positions the stack puts before those of its input."""
        return int(self.pooling == "class token")

    def head(self, d_model: int) -> tuple[Parameter, ...]:
        """The learned tensors after the last norm."""
        if self.predicts == "which position":
            # A number added to all scores changes nothing, so there is no bias.
            return linear("output", 1, d_model, bias=False)
        return linear("output", self.classes, d_model)

    def head_macs(self, d_model: int, tokens: int) -> int:
        """Multiply-accumulates after the last norm."""
        outputs = {
            "each position": tokens * self.classes,
            "the whole": self.classes,
            "which position": tokens,
        }
        return outputs[self.predicts] * d_model


@dataclass(frozen=True)
class Tower:
    """A second input and the bidirectional blocks that read it, with a norm after the last."""

    inputs: Tokens | Vectors
    blocks: tuple[Block, ...]
    position: Position

    @property
    def final_norm(self) -> AnyNorm:
        """The norm after the last block: as within it."""
        return self.blocks[-1].norm if self.blocks else LayerNorm()


@dataclass(frozen=True)
class EncoderDecoder:
    """A decoder whose blocks also attend to a source, which a tower reads whole."""

    source: Tower
    vocabulary: int
    tied: bool = False
    kind: Literal["encoder-decoder"] = "encoder-decoder"

    def head(self, d_model: int) -> tuple[Parameter, ...]:
        """The learned tensors after the last norm, as of a decoder."""
        return Decoder(self.vocabulary, self.tied).head(d_model)

    def head_macs(self, d_model: int, tokens: int) -> int:
        """Multiply-accumulates after the last norm, as of a decoder."""
        return Decoder(self.vocabulary, self.tied).head_macs(d_model, tokens)


@dataclass(frozen=True)
class TwoTowers:
    """Two inputs, each mapped to a vector; those that belong together are to be alike.

    A vector is the mean over a tower's positions, mapped to `width` coordinates and to length 1.
    ``names`` are those of the model's own input and of the second. arXiv:2103.00020, figure 3.
    """

    inputs: Tokens | Vectors
    second: Tower
    width: int
    names: tuple[str, str] = ("image", "text")
    kind: Literal["two towers"] = "two towers"

    def head(self, d_model: int) -> tuple[Parameter, ...]:
        """A matrix for each tower, and the logit scale.

        exp(logit_scale) multiplies a cosine and begins as 1/0.07: arXiv:2103.00020, section 2.5.
        """
        outputs = [
            linear(f"outputs.{name}", self.width, d_model, bias=False)[0] for name in self.names
        ]
        start = Constant(-math.log(0.07))
        return (*outputs, Parameter("logit_scale", (1,), start, decay=False, dtype="full"))

    def head_macs(self, d_model: int, tokens: int) -> int:
        """Multiply-accumulates after the last norm, without products between items."""
        del tokens
        return 2 * d_model * self.width


Architecture = Decoder | Encoder | EncoderDecoder | TwoTowers

# How a variant's places are written: ``q,k=v@cross+self``, and with others ``...|q=k,v@encoder``.
AT, AND, PLACED = "@", "+", "|"
# Places of attention in the stacks that have one input, or an input and a source.
SELF, CROSS, ENCODER = "self", "cross", "encoder"
# How a size match is written, behind a model's name or an arm's variants: ``recall~q,k=v:macs``.
LIKE, MACS = "~", ":macs"
# Behind an arm or a model's name: the same with other initial values, an A/A comparison.
AGAIN = "~again"


@dataclass(frozen=True)
class Init:
    """Standard deviations of the initial values; all are normal with mean 0.

    ``weight_std`` None means 1/sqrt(fan-in). ``rotation_std`` is the size of initial learned
    rotations: the entries of their generators have deviation ``rotation_std``/sqrt(head_dim).
    ``again`` draws other values of the same distribution.
    """

    embedding_std: float
    position_std: float
    weight_std: float | None = None
    rotation_std: float = 1.0
    again: bool = False


class LayerPlans(NamedTuple):
    """The plans of one block: of self-attention and of cross-attention, if it has them."""

    attention: Plan | None
    cross: Plan | None


class LentRoles(NamedTuple):
    """Whether K and V of a layer are read by layers above it.

    In a ``whole`` pass, and in a ``step`` of decoding those of the new token.
    """

    whole: tuple[Role, ...]
    step: tuple[Role, ...]


def lent_roles(layers: Sequence[LayerPlans]) -> list[LentRoles]:
    """The K and V of each layer of a tower that layers above it read."""
    plans = [each.attention for each in layers]
    whole = _read_roles([plan.lenders if plan else () for plan in plans])
    step = _read_roles([plan.row_lenders if plan else () for plan in plans])
    return list(map(LentRoles, whole, step))


def _read_roles(lenders: Sequence[tuple[Lender, ...]]) -> list[tuple[Role, ...]]:
    """The roles of each layer that are read, given the lenders of each."""
    read = {(layer - each.layers, each.role) for layer, own in enumerate(lenders) for each in own}
    return [tuple(role for role in ROLES if (layer, role) in read) for layer in range(len(lenders))]


# Blocks of one input -> the blocks in their places.
ChangedBlocks = Callable[[tuple[Block, ...]], tuple[Block, ...]]


@dataclass(frozen=True)
class SizeMatch:
    """The feed-forward width is chosen so that the model costs as much as with `like` everywhere.

    ``like`` is one variant, or several in turn. ``by`` is the cost that agrees: learned parameters,
    or MACs of one forward.
    """

    like: CycleText
    by: Literal["parameters", "macs"] = "parameters"


@dataclass(frozen=True)
class Model:
    """A whole network as a value: ``blocks`` before ``changes``; `Init` says how it begins."""

    name: str
    geometry: Geometry
    blocks: tuple[Block, ...]
    position: Position
    architecture: Architecture
    init: Init
    size_match: SizeMatch | None = None
    # What is changed in each of the blocks, by names of `CHANGES`.
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse changes that exclude each other, and positions that cannot be at this geometry."""
        if unknown := [name for name in self.changes if name not in CHANGES]:
            raise ValueError(f"'{unknown[0]}' is no change of a block; {', '.join(CHANGES)} are.")
        if self.changes != ordered(self.changes):
            raise ValueError(f"Changes are written in the order {', '.join(CHANGES)}.")
        if "tied-embeddings" in self.changes and not self.decodes:
            raise ValueError(
                f"{self.name} predicts no token, so that no table could be its output matrix; "
                "leave out ~tied-embeddings."
            )
        for tower in self.towers:
            rope_of(tower.position, self.geometry.head_dim)
            first = tower.blocks[0].feed_forward if tower.blocks else None
            if any(b.shared_feed_forward and b.feed_forward != first for b in tower.blocks):
                raise ValueError(
                    "Feed-forwards that differ cannot be shared; leave out ~shared-ff."
                )

    @property
    def label(self) -> str:
        """The name, with what makes it another arm of its variant: ``recall~q,k=v~again``."""
        return self.marked(self.name)

    def marked(self, text: str) -> str:
        """The text of the variants, or a name, with size match and A/A mark."""
        changed = "".join(f"{LIKE}{name}" for name in self.changes)
        return sized_text(text + changed, self.size_match) + (AGAIN if self.init.again else "")

    @property
    def causal(self) -> bool:
        """True for a decoder without a source: one input, read causally."""
        return isinstance(self.architecture, Decoder)

    @property
    def decodes(self) -> bool:
        """True if its own blocks are causal, so that it generates token by token over a cache."""
        return isinstance(self.architecture, Decoder | EncoderDecoder)

    @property
    def contrastive(self) -> bool:
        """True if the logits of an item depend on the other items of the batch."""
        return isinstance(self.architecture, TwoTowers)

    @property
    def inputs(self) -> Tokens | Vectors:
        """The input of the model's own blocks."""
        match self.architecture:
            case Decoder(vocabulary=vocabulary) | EncoderDecoder(vocabulary=vocabulary):
                return Tokens(vocabulary)
            case Encoder(inputs=inputs) | TwoTowers(inputs=inputs):
                return inputs

    def positions(self, tokens: int) -> int:
        """How many positions the blocks see of an input of `tokens`."""
        return tokens + (self.architecture.added if isinstance(self.architecture, Encoder) else 0)

    @property
    def second(self) -> Tower | None:
        """The tower of a second input; None if there is one input only."""
        match self.architecture:
            case EncoderDecoder(source=tower) | TwoTowers(second=tower):
                return tower
            case Decoder() | Encoder():
                return None

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Every input with its blocks as they are built: the model's own, then the second."""
        own = Tower(self.inputs, self.blocks, self.position)
        towers = (own,) if self.second is None else (own, self.second)
        if not self.changes:
            return towers
        return tuple(
            replace(tower, blocks=tuple(map(self._changed, tower.blocks))) for tower in towers
        )

    def _changed(self, block: Block) -> Block:
        """The block with the changes of the model."""
        changes = [CHANGES[name] for name in self.changes]
        fields = {
            change.field: change.value(getattr(block, change.field))
            for change in changes
            if change.field != TIED
        }
        return replace(block, **fields)

    @property
    def built(self) -> Architecture:
        """The architecture as it is built: the output matrix is the table if a change ties them."""
        match self.architecture:
            case Decoder() | EncoderDecoder() as stack if "tied-embeddings" in self.changes:
                return replace(stack, tied=True)
            case stack:
                return stack

    @property
    def places(self) -> dict[str, tuple[Attention | None, ...]]:
        """The attention of every layer by its site; a variant can be chosen for each site."""
        own = tuple(block.attention for block in self.blocks)
        second = self.second and tuple(block.attention for block in self.second.blocks)
        match self.architecture, second:
            case EncoderDecoder(), tuple():
                cross = tuple(block.cross for block in self.blocks)
                return {ENCODER: second, SELF: own, CROSS: cross}
            case TwoTowers(names=names), tuple():
                return dict(zip(names, (own, second), strict=True))
            case _:
                return {SELF: own}

    @property
    def longest(self) -> int | None:
        """The most tokens that the model can read; None if its positions set no bound."""
        return self.position.length if isinstance(self.position, Learned) else None

    @property
    def plans(self) -> tuple[Plan | None, ...]:
        """The plan of each own block's self-attention; None if it has none."""
        return tuple(layer.attention for layer in self.layers[0])

    @cached_property
    def layers(self) -> tuple[tuple[LayerPlans, ...], ...]:
        """The plans of every layer, tower by tower in the order of `towers`."""
        return tuple(
            self._layers(tower, causal=self.decodes and not number)
            for number, tower in enumerate(self.towers)
        )

    def _layers(self, tower: Tower, *, causal: bool) -> tuple[LayerPlans, ...]:
        rope = rope_of(tower.position, self.geometry.head_dim)
        alibi = alibi_of(tower.position)
        own = partial(resolve, geometry=self.geometry, causal=causal, rope=rope, alibi=alibi)
        below: list[Plan | None] = []
        crosses: list[Plan | None] = []
        for block in tower.blocks:
            attended, cross = _attended(block.attention), _attended(block.cross)
            below.append(attended and _in_block(own(attended, below=below), block))
            crosses.append(cross and _in_block(resolve_cross(cross, self.geometry), block))
        return tuple(map(LayerPlans, below, crosses))

    @cached_property
    def variant(self) -> str:
        """The equation that all layers share, or those of the places that are not canonical.

        Layers of one site that differ are written as the shortest cycle, ``q,k,v;q,k=v``. If some
        have no attention, their equations are listed in the order of first use.
        """
        texts = {place: _layers_text(layers) for place, layers in self.places.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        by_text: dict[str, list[str]] = {}
        for place, text in texts.items():
            by_text.setdefault(text, []).append(place)
        by_text.pop(write(CANONICAL), None)
        return placed_text(by_text)

    def with_positions(self, own: Position, second: Position) -> "Model":
        """The same model with other positions; `second` is for a second input, if there is one."""
        match self.architecture:
            case EncoderDecoder(source=tower):
                stack = replace(self.architecture, source=replace(tower, position=second))
            case TwoTowers(second=tower):
                stack = replace(self.architecture, second=replace(tower, position=second))
            case Decoder() | Encoder():
                stack = self.architecture
        return replace(self, position=own, architecture=stack)

    def with_variant(
        self, variant: Variant | Cycle, places: Container[str] | None = None
    ) -> "Model":
        """The same model with `variant` wherever it has attention, or at these places only.

        Several variants are given to the layers of each tower in turn.
        """
        cycle = (variant,) if isinstance(variant, Variant) else variant
        at = {place for place in self.places if places is None or place in places}
        own, second = {SELF, CROSS}, {ENCODER}
        if isinstance(self.architecture, TwoTowers):
            own, second = ({name} for name in self.architecture.names)
        return self._with_blocks(
            partial(_varied, cycle, at & own), partial(_varied, cycle, at & second)
        )

    def with_blocks(self, change: Callable[[Block], Block]) -> "Model":
        """The same model with every block of every input changed."""

        def changed(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
            return tuple(map(change, blocks))

        return self._with_blocks(changed, changed)

    def _with_blocks(self, own: ChangedBlocks, second: ChangedBlocks) -> "Model":
        """The same model with other blocks of its own, and of a second input."""
        changed = replace(self, blocks=own(self.blocks))
        match self.architecture:
            case EncoderDecoder(source=tower):
                tower = replace(tower, blocks=second(tower.blocks))
                stack = replace(self.architecture, source=tower)
            case TwoTowers(second=tower):
                tower = replace(tower, blocks=second(tower.blocks))
                stack = replace(self.architecture, second=tower)
            case Decoder() | Encoder():
                stack = self.architecture
        return replace(changed, architecture=stack)


def placed_text(places: Mapping[str, Collection[str]]) -> str:
    """The one text of variants and the places at which they are: both in alphabetical order."""
    parts = sorted((sorted(at), text) for text, at in places.items())
    return PLACED.join(text + (AT + AND.join(at) if at else "") for at, text in parts)


def sized_text(text: str, match: SizeMatch | None) -> str:
    """The text of an arm's variants, or a model's name, with the size that it is matched to."""
    if match is None:
        return text
    return f"{text}{LIKE}{write_cycle(match.like)}{MACS if match.by == 'macs' else ''}"


def _attended(attention: Attention | None) -> Variant | None:
    """The variant of a sub-layer; None if there is none, or is none in this arm."""
    return None if attention is None or attention.variant == NO_ATTENTION else attention.variant


def _in_block(plan: Plan, block: Block) -> Plan:
    """The plan with the matrices and biases that attention has in this block."""
    if block.biases and block.output_projection:
        return plan
    return replace(plan, matrix_biases=block.biases, output_projection=block.output_projection)


def _layers_text(layers: Iterable[Attention | None]) -> str:
    """The variants of the layers of one site."""
    variants = [layer and layer.variant for layer in layers]
    if None not in variants:
        return write_cycle(shortest_cycle(each for each in variants if each))
    return " | ".join(dict.fromkeys("none" if each is None else write(each) for each in variants))


def _varied(cycle: Cycle, at: set[str], blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks with variants in turn in the parts that are meant; all but `CROSS` is its own."""
    found: list[Block] = []
    for variant, block in zip(itertools.cycle(cycle), blocks, strict=False):
        own, cross = block.attention, block.cross
        found.append(
            replace(
                block,
                attention=replace(own, variant=variant) if own and at - {CROSS} else own,
                cross=replace(cross, variant=variant) if cross and CROSS in at else cross,
            )
        )
    return tuple(found)
