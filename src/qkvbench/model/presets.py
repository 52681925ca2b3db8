"""The models with a name. To add one, add a function to `PRESETS`."""

from collections.abc import Callable
from dataclasses import replace

from qkvbench.model.parts import FeedForward
from qkvbench.model.positions import Learned, Position, Rotary
from qkvbench.model.spec import (
    Architecture,
    Attention,
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    Init,
    Model,
    Tokens,
    Tower,
    TwoTowers,
    Vectors,
)
from qkvbench.variant import CANONICAL, sized


def transformer(
    name: str,
    stack: Architecture,
    *,
    layers: int,
    d_model: int,
    heads: int,
    position: Position,
    init: Init,
    feed_forward: int | None = None,
) -> Model:
    """A model of equal layers with canonical attention; feed-forward 4·d_model if not given."""
    block = Block(Attention(CANONICAL), FeedForward(feed_forward or 4 * d_model))
    return Model(name, sized(d_model, heads), (block,) * layers, position, stack, init)


def with_source(decoder: Model, inputs: Tokens | Vectors, position: Position) -> Model:
    """The decoder with a tower of as many blocks over a source, to which its blocks attend."""
    match decoder.architecture:
        case Decoder(vocabulary, tied):
            stack = EncoderDecoder(Tower(inputs, decoder.blocks, position), vocabulary, tied)
            blocks = tuple(replace(block, cross=block.attention) for block in decoder.blocks)
            return replace(decoder, blocks=blocks, architecture=stack)
        case _:
            raise ValueError(f"Only a decoder can be given a source; {decoder.name} is none.")


def with_tower(encoder: Model, inputs: Tokens | Vectors, position: Position, width: int) -> Model:
    """The encoder as one of two towers, beside one of as many blocks, to vectors of `width`."""
    stack = TwoTowers(encoder.inputs, Tower(inputs, encoder.blocks, position), width)
    return replace(encoder, architecture=stack)


def as_in(shape: Model, own: Model) -> Model:
    """The geometry, layers and positions of `shape` with the inputs, outputs and start of `own`."""
    plain = replace(shape, architecture=own.architecture, init=own.init)
    match own.architecture:
        case EncoderDecoder(source, vocabulary, tied):
            decoder = replace(plain, architecture=Decoder(vocabulary, tied))
            return with_source(decoder, source.inputs, source.position)
        case TwoTowers(inputs, second, width):
            return with_tower(
                replace(plain, architecture=Encoder(inputs, 1, "the whole")),
                second.inputs,
                second.position,
                width,
            )
        case Decoder() | Encoder():
            return plain


def gpt_125m() -> Model:
    """As large as the smallest GPT-2, the size in the article that this project began from."""
    return transformer(
        "gpt-125m",
        Decoder(vocabulary=50_257, tied=True),
        layers=12,
        d_model=768,
        heads=12,
        position=Learned(1024),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    )


def gpt_300m() -> Model:
    """The smaller model of arXiv:2606.04032."""
    return transformer(
        "gpt-300m",
        Decoder(vocabulary=50_304, tied=True),
        layers=20,
        d_model=1024,
        heads=16,
        position=Learned(2048),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    )


def gpt_1_2b() -> Model:
    """The larger model of arXiv:2606.04032."""
    return transformer(
        "gpt-1.2b",
        Decoder(vocabulary=50_304, tied=True),
        layers=22,
        d_model=2048,
        heads=32,
        position=Learned(2048),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    )


def small_decoder() -> Model:
    """A decoder over bytes with rotary positions: any length, trained in seconds on one core."""
    return transformer(
        "small-decoder",
        Decoder(vocabulary=256),
        layers=2,
        d_model=96,
        heads=4,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    )


PRESETS: dict[str, Callable[[], Model]] = {
    "small-decoder": small_decoder,
    "gpt-125m": gpt_125m,
    "gpt-300m": gpt_300m,
    "gpt-1.2b": gpt_1_2b,
}
