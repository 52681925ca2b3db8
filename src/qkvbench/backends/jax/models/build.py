"""From a model spec to a network: a value that computes, given its weights."""

from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.encoder import Encoder
from qkvbench.backends.jax.models.tower import tower
from qkvbench.backends.jax.models.two_tower import TwoTowers
from qkvbench.model import Decoder as DecoderSpec
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import EncoderDecoder as EncoderDecoderSpec
from qkvbench.model import Model, model_parameters
from qkvbench.model import TwoTowers as TwoTowersSpec

Network = Decoder | Encoder | TwoTowers


def build(model: Model, *, dropout: float = 0.0, again: bool = False) -> Network:
    """The network of `model`; `again`: activation checkpointing of each block."""
    first, *second = (
        tower(
            spec,
            layers,
            model.geometry.d_model,
            class_tokens=0 if number else model.positions(0),
            dropout=dropout,
            again=again,
        )
        for number, (spec, layers) in enumerate(zip(model.towers, model.layers, strict=True))
    )
    parameters = model_parameters(model)
    match model.built:
        case DecoderSpec(vocabulary) | EncoderDecoderSpec(vocabulary=vocabulary):
            source = second[0] if second else None
            return Decoder(first, source, vocabulary, model.longest, parameters)
        case EncoderSpec() as spec:
            return Encoder(spec, first, parameters)
        case TwoTowersSpec(names=names):
            return TwoTowers(dict(zip(names, (first, *second), strict=True)), parameters)
