"""Which network a model spec becomes."""

from qkvbench.backends.torch.decoder import Decoder
from qkvbench.backends.torch.encoder import Encoder
from qkvbench.model import Decoder as DecoderSpec
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import Model


def build(model: Model, *, dropout: float = 0.0) -> Decoder | Encoder:
    """The network of `model`, without values; on the meta device it takes no memory."""
    match model.stack:
        case DecoderSpec() as spec:
            return Decoder(model, spec, dropout)
        case EncoderSpec() as spec:
            return Encoder(model, spec, dropout)
