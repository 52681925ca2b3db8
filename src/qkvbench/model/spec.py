"""What a model is: one block spec per layer, a geometry, a position scheme and a stack."""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer

from qkvbench.variant import (
    CANONICAL,
    ROLES,
    Geometry,
    Plan,
    Role,
    Variant,
    crossed,
    parse,
    resolve,
    write,
)


def _as_variant(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


# In a file a variant is its equation.
VariantText = Annotated[
    Variant, BeforeValidator(_as_variant), PlainSerializer(write, return_type=str)
]


@dataclass(frozen=True)
class Attention:
    """The attention of one block.

    With a ``window`` a position sees only those less than `window` places away, itself included:
    in a causal stack the last `window`, in others as many on either side.
    """

    variant: VariantText
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuse a window through which nothing is seen."""
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"A window of {self.window} shows nothing; take 1 (each position itself) or more, "
                "or leave it out to see everything."
            )

    def seen(self, tokens: int, *, causal: bool) -> int:
        """The most positions of so many that one of them sees, counting a causal mask as open."""
        if self.window is None:
            return tokens
        return min(tokens, self.window if causal else 2 * self.window - 1)


@dataclass(frozen=True)
class FeedForward:
    """Two matrices with a GELU between; `width` is the number of hidden units."""

    width: int


@dataclass(frozen=True)
class LayerNorm:
    """Normalization before each part of a block, with scale and offset. arXiv:1607.06450."""

    eps: float = 1e-5


@dataclass(frozen=True)
class Block:
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)); a part may be left out.

    Where there is ``cross``, attention over the source, it comes between, in the same way, without
    a window.
    """

    attention: Attention | None
    feed_forward: FeedForward | None
    norm: LayerNorm = LayerNorm()
    cross: Attention | None = None

    def __post_init__(self) -> None:
        """Refuse a window between two sequences."""
        if self.cross and self.cross.window is not None:
            raise ValueError(
                "Places of two sequences are no distance apart, so attention across has no window; "
                "leave it out there."
            )


@dataclass(frozen=True)
class NoPosition:
    """Nothing tells positions apart but the causal mask."""

    kind: Literal["none"] = "none"
    turned: ClassVar[tuple[Role, ...]] = ()


@dataclass(frozen=True)
class Learned:
    """One learned vector for each of `length` positions, added to the input."""

    length: int
    kind: Literal["learned"] = "learned"
    turned: ClassVar[tuple[Role, ...]] = ()


@dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of the position, added to the input. arXiv:1706.03762, section 3.5."""

    base: float = 10_000.0
    kind: Literal["sinusoidal"] = "sinusoidal"
    turned: ClassVar[tuple[Role, ...]] = ()


@dataclass(frozen=True)
class Rotary:
    """Pairs of coordinates of Q and K turned in proportion to the position. arXiv:2104.09864.

    ``share`` is the part of each head's coordinates that is turned: the first ones.
    """

    base: float = 10_000.0
    share: float = 1.0
    kind: Literal["rotary"] = "rotary"
    turned: ClassVar[tuple[Role, ...]] = ("q", "k")


@dataclass(frozen=True)
class RotaryWithInverse:
    """As rotary, but V is turned as well, and what was attended is turned back by the query's.

    So the value, too, is seen at its distance; and where K and V are one tensor, the cache keeps it
    turned and nothing is left to do when it is read.
    """

    base: float = 10_000.0
    share: float = 1.0
    kind: Literal["turned-back"] = "turned-back"
    turned: ClassVar[tuple[Role, ...]] = ROLES


@dataclass(frozen=True)
class Alibi:
    """Scores fall in proportion to the distance, by a slope for each head. arXiv:2108.12409."""

    kind: Literal["alibi"] = "alibi"
    turned: ClassVar[tuple[Role, ...]] = ()


Position = NoPosition | Learned | Sinusoidal | Rotary | RotaryWithInverse | Alibi


def rotary_dim(position: Rotary | RotaryWithInverse, head_dim: int) -> int:
    """How many coordinates of a head are turned; ValueError where they make no whole pairs."""
    count = position.share * head_dim
    if not 0 < position.share <= 1 or count % 2:
        raise ValueError(
            f"{position.kind} positions turn pairs of coordinates, so the turned share of head_dim "
            f"must be an even number; here it is {position.share:g} of {head_dim}."
        )
    return int(count)


@dataclass(frozen=True)
class Tokens:
    """The input is a sequence of whole numbers below `vocabulary`, looked up in a table."""

    vocabulary: int
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True)
class Vectors:
    """The input is a sequence of vectors with `features` coordinates, mapped by one matrix."""

    features: int
    kind: Literal["vectors"] = "vectors"


@dataclass(frozen=True)
class Decoder:
    """A causal stack that predicts the next token; the output matrix is the table where `tied`."""

    vocabulary: int
    tied: bool = False
    kind: Literal["decoder"] = "decoder"


Pooling = Literal["mean", "class token"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Encoder:
    """A bidirectional stack with one prediction per position, or one for them all.

    "the whole" is told by the mean of all positions, or by a learned class token before them.
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


@dataclass(frozen=True)
class Tower:
    """A second input and the bidirectional blocks that read it, with a norm after the last."""

    inputs: Tokens | Vectors
    blocks: tuple[Block, ...]
    position: Position


@dataclass(frozen=True)
class EncoderDecoder:
    """A decoder whose blocks also attend to a source, which a tower reads whole."""

    source: Tower
    vocabulary: int
    tied: bool = False
    kind: Literal["encoder-decoder"] = "encoder-decoder"


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


Architecture = Decoder | Encoder | EncoderDecoder | TwoTowers

# How a variant's places are written: ``q,k=v@cross+self``, and with others ``...|q=k,v@encoder``.
AT, AND, PLACED = "@", "+", "|"
# Places of attention in the stacks that have one input, or an input and a source.
SELF, CROSS, ENCODER = "self", "cross", "encoder"
# How a size match is written, behind a model's name or an arm's variants: ``recall~q,k=v:macs``.
LIKE, MACS = "~", ":macs"


@dataclass(frozen=True)
class Init:
    """Standard deviations of the initial values; all are normal with mean 0.

    ``weight_std`` None means 1/sqrt(fan-in). ``rotation_std`` is the size of the initial learned rotations:
    the entries of their skew-symmetric generators have deviation ``rotation_std``/sqrt(head_dim).
    """

    embedding_std: float
    position_std: float
    weight_std: float | None = None
    rotation_std: float = 1.0


@dataclass(frozen=True)
class SizeMatch:
    """The feed-forward width is chosen so that the model costs as much as with `like` everywhere.

    ``by`` is the cost that agrees: learned parameters, or MACs of one forward.
    """

    like: VariantText
    by: Literal["parameters", "macs"] = "parameters"


@dataclass(frozen=True)
class Model:
    """A whole network as a value. Biases are on everywhere; `Start` says how it begins."""

    name: str
    geometry: Geometry
    blocks: tuple[Block, ...]
    position: Position
    architecture: Architecture
    init: Init
    size_match: SizeMatch | None = None

    def __post_init__(self) -> None:
        """Refuse a position scheme that cannot work at this geometry."""
        for position in (self.position, self.second and self.second.position):
            if isinstance(position, Rotary | RotaryWithInverse):
                rotary_dim(position, self.geometry.head_dim)

    @property
    def label(self) -> str:
        """The name, with the size that the model is matched to: ``recall~q,k=v``."""
        return sized_text(self.name, self.size_match)

    @property
    def causal(self) -> bool:
        """Whether it reads one input, and a position sees only itself and what is before it."""
        return isinstance(self.architecture, Decoder)

    @property
    def contrastive(self) -> bool:
        """Whether what it says of an item depends on the other items of the batch."""
        return isinstance(self.architecture, TwoTowers)

    @property
    def inputs(self) -> Tokens | Vectors:
        """What the model's own blocks read."""
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
        """The tower that reads a second input; None where there is one input only."""
        match self.architecture:
            case EncoderDecoder(source=tower) | TwoTowers(second=tower):
                return tower
            case Decoder() | Encoder():
                return None

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All inputs and what reads them: the model's own, then the second where there is one."""
        own = Tower(self.inputs, self.blocks, self.position)
        return (own,) if self.second is None else (own, self.second)

    @property
    def places(self) -> dict[str, tuple[Attention | None, ...]]:
        """The attention of every layer, by where it is; these are what a variant is chosen for."""
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
        """The most tokens that the model can read; None where its positions set no bound."""
        return self.position.length if isinstance(self.position, Learned) else None

    @property
    def plans(self) -> tuple[Plan | None, ...]:
        """The plan of each own block's attention over its own input; None where it has none."""
        return tuple(own for own, _ in self.plans_of(self.towers[0]))

    def plans_of(self, tower: Tower) -> tuple[tuple[Plan | None, Plan | None], ...]:
        """The plans of each block's attention over its own input and over the source."""
        turned = tower.position.turned
        return tuple(
            (
                block.attention and resolve(block.attention.variant, self.geometry, turned),
                block.cross and crossed(block.cross.variant, self.geometry),
            )
            for block in tower.blocks
        )

    @property
    def variant(self) -> str:
        """The equation that all layers share, or those of the places that are not canonical.

        Layers of one place that differ stand there in the order of first use.
        """
        texts = {
            place: " | ".join(
                dict.fromkeys("none" if one is None else write(one.variant) for one in layers)
            )
            for place, layers in self.places.items()
        }
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

    def with_variant(self, variant: Variant, places: Container[str] | None = None) -> "Model":
        """The same model with `variant` wherever it has attention, or at these places only."""
        at = {place for place in self.places if places is None or place in places}
        own, second = {SELF, CROSS}, {ENCODER}
        if isinstance(self.architecture, TwoTowers):
            own, second = ({name} for name in self.architecture.names)
        return self.with_blocks(
            partial(_varied, variant, at & own), partial(_varied, variant, at & second)
        )

    def with_window(self, window: int | None) -> "Model":
        """The same model with this window in every layer of its own blocks."""

        def windowed(block: Block) -> Block:
            own = block.attention
            return replace(block, attention=own and replace(own, window=window))

        return self.with_blocks(windowed, lambda block: block)

    def with_blocks(
        self, change: Callable[[Block], Block], second: Callable[[Block], Block] | None = None
    ) -> "Model":
        """The same model with its own blocks changed, and those of a second input as `second`.

        None is the same change for both.
        """
        changed = replace(self, blocks=tuple(change(block) for block in self.blocks))
        match self.architecture:
            case EncoderDecoder(source=tower):
                stack = replace(self.architecture, source=_changed(tower, second or change))
            case TwoTowers(second=tower):
                stack = replace(self.architecture, second=_changed(tower, second or change))
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
    return f"{text}{LIKE}{write(match.like)}{MACS if match.by == 'macs' else ''}"


def _changed(tower: Tower, change: Callable[[Block], Block]) -> Tower:
    return replace(tower, blocks=tuple(change(block) for block in tower.blocks))


def _varied(variant: Variant, at: set[str], block: Block) -> Block:
    """The block with `variant` in the parts that are meant; all but `CROSS` is its own."""
    own, cross = block.attention, block.cross
    return replace(
        block,
        attention=replace(own, variant=variant) if own and at - {CROSS} else own,
        cross=replace(cross, variant=variant) if cross and CROSS in at else cross,
    )
