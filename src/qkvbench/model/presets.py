"""The models with a name. To add one, add a function to `PRESETS`."""

from collections.abc import Callable
from dataclasses import replace

from qkvbench.model.spec import (
    Attention,
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    Learned,
    Model,
    Position,
    Rotary,
    Stack,
    Start,
    Tokens,
    Tower,
    TwoTowers,
    Vectors,
)
from qkvbench.variant import CANONICAL, sized


def transformer(
    name: str,
    stack: Stack,
    *,
    layers: int,
    d_model: int,
    heads: int,
    position: Position,
    start: Start,
    feed_forward: int | None = None,
) -> Model:
    """A model of equal layers with canonical attention; feed-forward 4·d_model if not given."""
    block = Block(Attention(CANONICAL), FeedForward(feed_forward or 4 * d_model))
    return Model(name, sized(d_model, heads), (block,) * layers, position, stack, start)


def with_source(decoder: Model, inputs: Tokens | Vectors, position: Position) -> Model:
    """The decoder with a tower of as many blocks over a source, to which its blocks attend."""
    match decoder.stack:
        case Decoder(vocabulary, tied):
            stack = EncoderDecoder(Tower(inputs, decoder.blocks, position), vocabulary, tied)
            blocks = tuple(replace(block, cross=block.attention) for block in decoder.blocks)
            return replace(decoder, blocks=blocks, stack=stack)
        case _:
            raise ValueError(f"Only a decoder can be given a source; {decoder.name} is none.")


def with_tower(encoder: Model, inputs: Tokens | Vectors, position: Position, width: int) -> Model:
    """The encoder as one of two towers, beside one of as many blocks, to vectors of `width`."""
    stack = TwoTowers(encoder.inputs, Tower(inputs, encoder.blocks, position), width)
    return replace(encoder, stack=stack)


def as_in(shape: Model, own: Model) -> Model:
    """The geometry, layers and positions of `shape` with the inputs, outputs and start of `own`."""
    plain = replace(shape, stack=own.stack, start=own.start)
    match own.stack:
        case EncoderDecoder(source, vocabulary, tied):
            decoder = replace(plain, stack=Decoder(vocabulary, tied))
            return with_source(decoder, source.inputs, source.position)
        case TwoTowers(inputs, second, width):
            return with_tower(
                replace(plain, stack=Encoder(inputs, 1, "the whole")),
                second.inputs,
                second.position,
                width,
            )
        case Decoder() | Encoder():
            return plain


def gpt_300m() -> Model:
    """The smaller model of arXiv:2606.04032."""
    return transformer(
        "gpt-300m",
        Decoder(vocabulary=50_304, tied=True),
        layers=20,
        d_model=1024,
        heads=16,
        position=Learned(2048),
        start=Start(table=0.02, position=0.02, matrix=0.02),
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
        start=Start(table=0.02, position=0.02, matrix=0.02),
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
        start=Start(table=0.5, position=0.5),
    )


PRESETS: dict[str, Callable[[], Model]] = {
    "small-decoder": small_decoder,
    "gpt-300m": gpt_300m,
    "gpt-1.2b": gpt_1_2b,
}
