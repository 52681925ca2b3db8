"""One of two inputs of a model: embedded, and read by bidirectional blocks."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from qkvbench.backends.torch.models.block import Blocks
from qkvbench.backends.torch.models.embedding import Embedding
from qkvbench.backends.torch.models.parts import norm
from qkvbench.model import LayerPlans
from qkvbench.model import Tower as TowerSpec

Lengths = Int[Tensor, " batch"]


class Tower(nn.Module):
    """An input to the normed stream after the last block."""

    def __init__(
        self, spec: TowerSpec, layers: tuple[LayerPlans, ...], d_model: int, dropout: float
    ) -> None:
        """An untrained tower, as its spec says."""
        super().__init__()
        self.embedding = Embedding(spec.inputs, spec.position, d_model)
        self.blocks = Blocks(spec.blocks, layers, d_model, dropout)
        self.norm = norm(spec.final_norm, d_model)

    def forward(
        self, inputs: Num[Tensor, "batch time *features"], lengths: Lengths | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream; nothing attends to what follows an item's first `lengths` positions."""
        return self.norm(self.blocks(self.embedding(inputs), lengths=lengths))


def averaged(
    x: Float[Tensor, "batch time d_model"], lengths: Lengths | None
) -> Float[Tensor, "batch one d_model"]:
    """The mean over the positions that are read."""
    if lengths is None:
        return x.mean(dim=1, keepdim=True)
    read = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return (x * read[:, :, None]).sum(dim=1, keepdim=True) / lengths[:, None, None]
