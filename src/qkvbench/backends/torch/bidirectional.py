"""The bidirectional stack: tokens or vectors to one prediction per position, or one in all."""

from jaxtyping import Float, Num
from torch import Tensor, nn

from qkvbench.backends.torch.block import Block
from qkvbench.backends.torch.embedding import Embedding
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import Model


class Encoder(nn.Module):
    """An encoder-only Transformer, as its spec says."""

    def __init__(self, model: Model, spec: EncoderSpec, dropout: float = 0.0) -> None:
        """An untrained encoder; `start` gives it its initial values."""
        super().__init__()
        self.predicts = spec.predicts
        self.embedding = Embedding(model)
        self.blocks = nn.ModuleList([Block(block, model, dropout) for block in model.blocks])
        self.norm = nn.LayerNorm(model.geometry.d_model)
        self.output = nn.Linear(model.geometry.d_model, spec.classes)

    def forward(
        self, inputs: Num[Tensor, "batch time *features"]
    ) -> Float[Tensor, "batch places classes"]:
        """Logits of the classes; one place where the whole is predicted."""
        return self.head(self.hidden(inputs))

    def hidden(
        self, inputs: Num[Tensor, "batch time *features"]
    ) -> Float[Tensor, "batch places d_model"]:
        """The normed stream after the last block, or its mean."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x.mean(dim=1, keepdim=True) if self.predicts == "the whole" else x

    @property
    def classes(self) -> int:
        """Between how many classes a prediction decides."""
        return self.output.out_features

    def head(self, x: Float[Tensor, "*places d_model"]) -> Float[Tensor, "*places classes"]:
        """Logits of the classes."""
        return self.output(x)
