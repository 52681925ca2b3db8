"""The bidirectional stack: tokens or vectors to one prediction per position, or one in all."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from qkvbench.backends.torch.block import Block
from qkvbench.backends.torch.embedding import Embedding
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import Model

Lengths = Int[Tensor, " batch"]


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
        self, inputs: Num[Tensor, "batch time *features"], lengths: Lengths | None = None
    ) -> Float[Tensor, "batch places classes"]:
        """Logits of the classes; one place where the whole is predicted."""
        return self.head(self.hidden(inputs, lengths))

    def hidden(
        self, inputs: Num[Tensor, "batch time *features"], lengths: Lengths | None = None
    ) -> Float[Tensor, "batch places d_model"]:
        """The normed stream after the last block, or its mean over the positions that are read.

        `lengths` counts these: the first ones of each item. Nothing attends to the others.
        """
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x, None, lengths)
        x = self.norm(x)
        if self.predicts == "each position":
            return x
        if lengths is None:
            return x.mean(dim=1, keepdim=True)
        read = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return (x * read[:, :, None]).sum(dim=1, keepdim=True) / lengths[:, None, None]

    @property
    def classes(self) -> int:
        """Between how many classes a prediction decides."""
        return self.output.out_features

    def head(self, x: Float[Tensor, "*places d_model"]) -> Float[Tensor, "*places classes"]:
        """Logits of the classes."""
        return self.output(x)
