"""Two towers as in CLIP: each embeds one input; the vectors of a pair are trained to be similar."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.models.tower import Tower, averaged
from qkvbench.model import Model
from qkvbench.model import TwoTowers as TwoTowersSpec

Lengths = Int[Tensor, " batch"]
# The largest factor of a cosine similarity. arXiv:2103.00020, section 2.5.
MAX_LOGIT_SCALE = 100.0


class TwoTowers(nn.Module):
    """Two towers and their contrastive head: classifies which item of the batch is the pair."""

    def __init__(self, model: Model, spec: TwoTowersSpec, dropout: float = 0.0) -> None:
        """Untrained towers; `start` sets the initial values."""
        super().__init__()
        size = model.geometry
        self.towers = nn.ModuleDict(
            {
                name: Tower(tower, layers, size.d_model, dropout)
                for name, tower, layers in zip(spec.names, model.towers, model.layers, strict=True)
            }
        )
        self.outputs = nn.ModuleDict(
            {name: nn.Linear(size.d_model, spec.width, bias=False) for name in spec.names}
        )
        self.logit_scale = nn.Parameter(torch.zeros(1))

    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,  # noqa: FBT001, FBT002 (torch's signature)
        remove_duplicate: bool = True,  # noqa: FBT001, FBT002
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with the logit scale last, which is the order of the committed records.

        The gradient norm is a sum in this order, so another one changes its last bits.
        """
        parameters = super().named_parameters(prefix, recurse, remove_duplicate)
        yield from sorted(parameters, key=lambda each: each[1] is self.logit_scale)

    def forward(
        self,
        inputs: Num[Tensor, "batch time *features"],
        lengths: Lengths | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Lengths | None = None,
    ) -> Float[Tensor, "places batch"]:
        """Logits over the items of the batch, for each vector of `hidden`."""
        return self.head(self.hidden(inputs, lengths, second, second_lengths).flatten(0, 1))

    def hidden(
        self,
        inputs: Num[Tensor, "batch time *features"],
        lengths: Lengths | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Lengths | None = None,
    ) -> Float[Tensor, "batch two width"]:
        """The unit vectors of each item's two inputs."""
        pairs = ((inputs, lengths), (second, second_lengths))
        vectors = [
            self.outputs[name](averaged(tower(*pair), pair[1]))  # (batch, 1, width)
            for (name, tower), pair in zip(self.towers.items(), pairs, strict=True)
        ]
        return functional.normalize(torch.cat(vectors, dim=1), dim=-1)

    @property
    def classes(self) -> int:
        """One: `head` compares all rows with each other and cannot be computed in chunks."""
        return 1

    def head(self, x: Float[Tensor, "places width"]) -> Float[Tensor, "places batch"]:
        """Scaled cosine similarity of each vector to all vectors of the other tower."""
        first, second = x.unflatten(0, (-1, 2)).unbind(dim=1)  # (batch, width) each
        scale = self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()
        logits = first @ second.mT * scale  # (batch, batch)
        return torch.stack([logits, logits.mT], dim=1).flatten(0, 1)  # (batch · 2, batch)
