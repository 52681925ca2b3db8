"""From a model spec to a network."""

from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.encoder import Encoder
from qkvbench.backends.torch.models.two_tower import TwoTowers
from qkvbench.backends.torch.models.weights import start
from qkvbench.model import Decoder as DecoderSpec
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import EncoderDecoder as EncoderDecoderSpec
from qkvbench.model import Init, Model, Position, Rotary, transformer
from qkvbench.model import TwoTowers as TwoTowersSpec
from qkvbench.variant import Variant, parse

Network = Decoder | Encoder | TwoTowers


def build(model: Model, *, dropout: float = 0.0) -> Network:
    """The network of `model`, without initial values; on the meta device it uses no memory."""
    match model.built:
        case DecoderSpec() | EncoderDecoderSpec() as spec:
            return Decoder(model, spec, dropout)
        case EncoderSpec() as spec:
            return Encoder(model, spec, dropout)
        case TwoTowersSpec() as spec:
            return TwoTowers(model, spec, dropout)


def decoder(
    variant: Variant | str,
    *,
    vocabulary: int,
    layers: int,
    d_model: int,
    heads: int,
    position: Position = Rotary(),
    seed: int = 0,
) -> Decoder:
    """A decoder with `variant` in every layer and the initial values of `seed`."""
    model = transformer(
        "decoder",
        DecoderSpec(vocabulary),
        layers=layers,
        d_model=d_model,
        heads=heads,
        position=position,
        init=Init(embedding_std=0.5, position_std=0.5),
    )
    model = model.with_variant(parse(variant) if isinstance(variant, str) else variant)
    network = Decoder(model, DecoderSpec(vocabulary))
    start(network, model, seed)
    return network
