"""What a model is: one block spec per layer, a geometry, a position scheme and a stack."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer

from qkvbench.variant import ROLES, Geometry, Plan, Role, Variant, parse, resolve, write


def _as_variant(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


# In a file a variant is its equation.
VariantText = Annotated[
    Variant, BeforeValidator(_as_variant), PlainSerializer(write, return_type=str)
]


@dataclass(frozen=True)
class Attention:
    """The attention of one block."""

    variant: VariantText


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
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)); a part may be left out."""

    attention: Attention | None
    feed_forward: FeedForward | None
    norm: LayerNorm = LayerNorm()


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
class TurnedBack:
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


Position = NoPosition | Learned | Sinusoidal | Rotary | TurnedBack | Alibi


def turned_coordinates(position: Rotary | TurnedBack, head_dim: int) -> int:
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


@dataclass(frozen=True)
class Encoder:
    """A bidirectional stack with one prediction per position, or one from their mean."""

    inputs: Tokens | Vectors
    classes: int
    predicts: Literal["each position", "the whole"]
    kind: Literal["encoder"] = "encoder"


Stack = Decoder | Encoder


@dataclass(frozen=True)
class Start:
    """Standard deviations of the initial values; all are normal with mean 0.

    ``matrix`` None means 1/sqrt(fan-in). ``rotation`` is the size of the initial learned rotations:
    the entries of their skew-symmetric generators have deviation ``rotation``/sqrt(head_dim).
    """

    table: float
    position: float
    matrix: float | None = None
    rotation: float = 1.0


@dataclass(frozen=True)
class Model:
    """A whole network as a value. Biases are on everywhere; `Start` says how it begins."""

    name: str
    geometry: Geometry
    blocks: tuple[Block, ...]
    position: Position
    stack: Stack
    start: Start

    def __post_init__(self) -> None:
        """Refuse a position scheme that cannot work at this geometry."""
        if isinstance(self.position, Rotary | TurnedBack):
            turned_coordinates(self.position, self.geometry.head_dim)

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and what is before it."""
        return isinstance(self.stack, Decoder)

    @property
    def inputs(self) -> Tokens | Vectors:
        """What the stack reads."""
        match self.stack:
            case Decoder(vocabulary=vocabulary):
                return Tokens(vocabulary)
            case Encoder(inputs=inputs):
                return inputs

    @property
    def longest(self) -> int | None:
        """The most tokens that the model can read; None where its positions set no bound."""
        return self.position.length if isinstance(self.position, Learned) else None

    @property
    def plans(self) -> tuple[Plan | None, ...]:
        """The plan of each block's attention; None where a block has none."""
        return tuple(
            block.attention
            and resolve(block.attention.variant, self.geometry, self.position.turned)
            for block in self.blocks
        )

    @property
    def variant(self) -> str:
        """The equation that all blocks share, or the different ones in order of first use."""
        attentions = [block.attention for block in self.blocks]
        texts = ["none" if part is None else write(part.variant) for part in attentions]
        return " | ".join(dict.fromkeys(texts))

    def with_variant(self, variant: Variant) -> "Model":
        """The same model with `variant` in every block that has attention."""
        blocks = tuple(
            replace(block, attention=block.attention and Attention(variant))
            for block in self.blocks
        )
        return replace(self, blocks=blocks)
