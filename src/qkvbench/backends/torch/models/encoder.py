"""The bidirectional stack: tokens or vectors to one prediction per position, or one in all."""

import math

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from qkvbench.backends.torch.models.block import Blocks
from qkvbench.backends.torch.models.embedding import Embedding
from qkvbench.backends.torch.models.parts import norm
from qkvbench.backends.torch.models.tower import averaged
from qkvbench.model import Encoder as EncoderSpec
from qkvbench.model import Model

Lengths = Int[Tensor, " batch"]


class Encoder(nn.Module):
    """An encoder-only Transformer, as its spec says."""

    def __init__(self, model: Model, spec: EncoderSpec, dropout: float = 0.0) -> None:
        """An untrained encoder; `start` gives it its initial values."""
        super().__init__()
        self.spec = spec
        size = model.geometry
        self.embedding = Embedding(
            model.inputs, model.position, size.d_model, class_tokens=spec.added
        )
        self.blocks = Blocks(model.towers[0].blocks, model.layers[0], size.d_model, dropout)
        self.norm = norm(model.towers[0].final_norm, size.d_model)
        if spec.predicts == "which position":
            # The same number added to all scores changes nothing, so there is no offset.
            self.output = nn.Linear(size.d_model, 1, bias=False)
        else:
            self.output = nn.Linear(size.d_model, spec.classes)

    def forward(
        self, inputs: Num[Tensor, "batch time *features"], lengths: Lengths | None = None
    ) -> Float[Tensor, "batch places classes"]:
        """Logits of the classes; one position if one prediction is made for all."""
        return self.head(self.hidden(inputs, lengths))

    def hidden(
        self, inputs: Num[Tensor, "batch time *features"], lengths: Lengths | None = None
    ) -> Float[Tensor, "batch places _features"]:
        """The input of the head: the normed stream at the predicting positions.

        That is at each position, at the class token, or the mean over the positions that are read;
        for "which position", the score of each. `lengths` counts the positions that are read:
        the first ones of each item. Nothing attends to the others.
        """
        seen = None if lengths is None else lengths + self.spec.added
        x = self.blocks(self.embedding(inputs), lengths=seen)
        if self.spec.pooling == "class token":
            return self.norm(x[:, :1])
        x = self.norm(x)
        match self.spec.predicts:
            case "each position":
                return x
            case "the whole":
                return averaged(x, lengths)
            case "which position":
                return _among(self.output(x).mT, lengths)

    @property
    def classes(self) -> int:
        """The number of classes of a prediction."""
        return self.spec.classes

    def head(self, x: Float[Tensor, "*places _features"]) -> Float[Tensor, "*places classes"]:
        """Logits of the classes."""
        return x if self.spec.predicts == "which position" else self.output(x)


def _among(
    scores: Float[Tensor, "batch one time"], lengths: Lengths | None
) -> Float[Tensor, "batch one time"]:
    """The scores of the positions that are read; the others are never named."""
    if lengths is None:
        return scores
    places = torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill(places >= lengths[:, None, None], -math.inf)
