"""Two towers: each input becomes a vector, and those that belong together are to be alike."""

import math

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.models.tower import Tower, averaged
from qkvbench.model import Model
from qkvbench.model import TwoTowers as TwoTowersSpec

Lengths = Int[Tensor, " batch"]
# A likeness is never made sharper than this. arXiv:2103.00020, section 2.5.
MAX_LOGIT_SCALE = 100.0


class TwoTowers(nn.Module):
    """Two towers and what compares their vectors; each item is told from the others of a batch."""

    def __init__(self, model: Model, spec: TwoTowersSpec, dropout: float = 0.0) -> None:
        """Untrained towers; `start` gives them their initial values."""
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

    def forward(
        self,
        inputs: Num[Tensor, "batch time *features"],
        lengths: Lengths | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Lengths | None = None,
    ) -> Float[Tensor, "places batch"]:
        """Logits of which item of the batch belongs to each; the places are as in `hidden`."""
        return self.head(self.hidden(inputs, lengths, second, second_lengths).flatten(0, 1))

    def hidden(
        self,
        inputs: Num[Tensor, "batch time *features"],
        lengths: Lengths | None = None,
        second: Num[Tensor, "batch second_time *second_features"] | None = None,
        second_lengths: Lengths | None = None,
    ) -> Float[Tensor, "batch two width"]:
        """The vector of each item's own input and that of its second, of length 1."""
        read = ((inputs, lengths), (second, second_lengths))
        vectors = [
            self.outputs[name](averaged(tower(*given), given[1]))
            for (name, tower), given in zip(self.towers.items(), read, strict=True)
        ]
        return functional.normalize(torch.cat(vectors, dim=1), dim=-1)

    @property
    def classes(self) -> int:
        """One: all rows go into `head` together, since each is compared with all."""
        return 1

    def head(self, x: Float[Tensor, "places width"]) -> Float[Tensor, "places batch"]:
        """How alike each place's vector and all those of the other kind are, sharpened."""
        first, second = x.unflatten(0, (-1, 2)).unbind(dim=1)
        alike = first @ second.mT * self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()
        return torch.stack([alike, alike.mT], dim=1).flatten(0, 1)
