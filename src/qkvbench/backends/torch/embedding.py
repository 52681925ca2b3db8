"""The stream before the first block: a vector for each token or input vector, and its position."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.model import Learned, Model, Tokens, Vectors


class Embedding(nn.Module):
    """Inputs mapped to the stream; learned positions added where the scheme has them."""

    def __init__(self, model: Model) -> None:
        """The embedding that the inputs of `model` need."""
        super().__init__()
        d_model = model.geometry.d_model
        match model.inputs:
            case Tokens(vocabulary):
                self.table = nn.Parameter(torch.zeros(vocabulary, d_model))
            case Vectors(features):
                self.vectors = nn.Linear(features, d_model)
        self.positions = None
        if isinstance(model.position, Learned):
            self.positions = nn.Parameter(torch.zeros(model.position.length, d_model))

    def forward(
        self, inputs: Num[Tensor, "batch time *features"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream of whole sequences, from position 0."""
        x = functional.embedding(inputs, self.table) if inputs.ndim == 2 else self.vectors(inputs)
        if self.positions is None:
            return x
        time = inputs.shape[1]
        if time > len(self.positions):
            raise ValueError(
                f"{time} positions do not fit a model with {len(self.positions)} learned ones."
            )
        return x + self.positions[:time]

    def at(
        self, tokens: Int[Tensor, " batch"], first: int, times: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch one d_model"]:
        """The stream of one token of each: at position `first`, or at its own of `times`."""
        x = functional.embedding(tokens, self.table)
        if self.positions is not None:
            x = x + (self.positions[first] if times is None else self.positions[times])
        return x[:, None]
