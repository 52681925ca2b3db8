"""Input embedding: the stream before the first block, from tokens or vectors and positions."""

from functools import partial

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.attention.rope import PositionTable, sinusoids
from qkvbench.model import Learned, Position, Sinusoidal, Tokens, Vectors


class Embedding(nn.Module):
    """Embeds inputs; adds position embeddings if the scheme has them."""

    def __init__(
        self, inputs: Tokens | Vectors, position: Position, d_model: int, class_tokens: int = 0
    ) -> None:
        """An untrained embedding, with `class_tokens` learned vectors in front of the inputs."""
        super().__init__()
        match inputs:
            case Tokens(vocabulary):
                self.table = nn.Parameter(torch.zeros(vocabulary, d_model))
            case Vectors(features):
                self.vectors = nn.Linear(features, d_model)
        # A class token gets no position: its own vector tells it from the inputs.
        self.class_token = None
        if class_tokens:
            self.class_token = nn.Parameter(torch.zeros(class_tokens, d_model))
        self.positions = None
        self._sinusoids = None
        match position:
            case Learned(length):
                self.positions = nn.Parameter(torch.zeros(length, d_model))
            case Sinusoidal(base):
                self._sinusoids = PositionTable(partial(sinusoids, features=d_model, base=base))
            case _:
                pass

    def forward(
        self, inputs: Num[Tensor, "batch time *features"]
    ) -> Float[Tensor, "batch positions d_model"]:
        """The stream of whole sequences from position 0, with the class tokens in front."""
        # x: (batch, time, d_model), from tokens (batch, time) or vectors (batch, time, features)
        x = functional.embedding(inputs, self.table) if inputs.ndim == 2 else self._vectors(inputs)
        time = inputs.shape[1]
        added = self.position_embeddings(time, x)
        x = x if added is None else x + added[:time]
        if self.class_token is None:
            return x
        first = self.class_token.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([first, x], dim=1)  # (batch, class_tokens + time, d_model)

    def _vectors(
        self, inputs: Float[Tensor, "batch time features"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream of vectors, in the dtype of the weights, which autocast would narrow."""
        return self.vectors(inputs).to(self.vectors.weight.dtype)

    def at(
        self, tokens: Int[Tensor, " batch"], first: int, times: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch one d_model"]:
        """The stream of one token per sequence, at position `first` or at its own of `times`."""
        x = functional.embedding(tokens, self.table)
        added = self.position_embeddings(first + 1, x)
        if added is not None:
            x = x + (added[first] if times is None else added[times])
        return x[:, None]  # (batch, 1, d_model)

    def position_embeddings(
        self, length: int, x: Tensor
    ) -> Float[Tensor, "positions d_model"] | None:
        """Embeddings of at least `length` positions; None if the scheme adds none."""
        if self._sinusoids is not None:
            return self._sinusoids(length, x).to(x.dtype)
        if self.positions is not None and length > len(self.positions):
            raise ValueError(
                f"{length} positions do not fit a model with {len(self.positions)} learned ones."
            )
        return self.positions
