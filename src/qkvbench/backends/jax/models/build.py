"""From a model spec to a network: a value that computes, given its weights."""

from functools import partial

from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.encoder import Encoder
from qkvbench.backends.jax.models.tower import tower
from qkvbench.backends.jax.models.two_tower import TwoTowers
from qkvbench.model import Decoder as DecoderSpec
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import EncoderDecoder as EncoderDecoderSpec
from qkvbench.model import Model
from qkvbench.model import TwoTowers as TwoTowersSpec

Network = Decoder | Encoder | TwoTowers


def build(model: Model, *, dropout: float = 0.0, again: bool = False) -> Network:
    """The network of `model`; `again` recomputes each block in the backward pass."""
    size, towers = model.geometry, model.towers
    make = partial(tower, geometry=size, dropout=dropout, again=again)
    match model.architecture:
        case DecoderSpec(vocabulary, tied):
            return Decoder(make(towers[0], causal=True), None, vocabulary, model.longest, tied)
        case EncoderDecoderSpec(source, vocabulary, tied):
            own = make(towers[0], causal=True)
            return Decoder(own, make(source), vocabulary, model.longest, tied)
        case EncoderSpec() as spec:
            return Encoder(spec, make(towers[0], class_tokens=spec.added))
        case TwoTowersSpec(names=names, width=width):
            return TwoTowers(dict(zip(names, map(make, towers), strict=True)), width)
