"""The stream before the first block: a vector for each token or input vector, and its position."""

from functools import partial

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.attention.rope import PositionTable, sinusoids
from qkvbench.model import Learned, Position, Sinusoidal, Tokens, Vectors


class Embedding(nn.Module):
    """Inputs mapped to the stream; positions added where the scheme adds them."""

    def __init__(
        self, inputs: Tokens | Vectors, position: Position, d_model: int, class_tokens: int = 0
    ) -> None:
        """The embedding that such inputs need, and so many learned vectors before them."""
        super().__init__()
        match inputs:
            case Tokens(vocabulary):
                self.table = nn.Parameter(torch.zeros(vocabulary, d_model))
            case Vectors(features):
                self.vectors = nn.Linear(features, d_model)
        # It gets no position: it is no input, and its own vector tells it from them.
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
        """The stream of whole sequences, from position 0; before them the class token."""
        x = functional.embedding(inputs, self.table) if inputs.ndim == 2 else self.vectors(inputs)
        time = inputs.shape[1]
        added = self._added(time, x)
        x = x if added is None else x + added[:time]
        if self.class_token is None:
            return x
        first = self.class_token.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([first, x], dim=1)

    def at(
        self, tokens: Int[Tensor, " batch"], first: int, times: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch one d_model"]:
        """The stream of one token of each: at position `first`, or at its own of `times`."""
        x = functional.embedding(tokens, self.table)
        added = self._added(first + 1, x)
        if added is not None:
            x = x + (added[first] if times is None else added[times])
        return x[:, None]

    def _added(self, length: int, x: Tensor) -> Float[Tensor, "positions d_model"] | None:
        """What is added at each position, at least `length` of them; None where nothing is."""
        if self._sinusoids is not None:
            return self._sinusoids(length, x).to(x.dtype)
        if self.positions is not None and length > len(self.positions):
            raise ValueError(
                f"{length} positions do not fit a model with {len(self.positions)} learned ones."
            )
        return self.positions
