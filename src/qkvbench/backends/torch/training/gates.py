"""The gates of a network while it trains: samples, the price of cost, and the plan that they mean.

One vector of logits for each layer. In each step every sequence draws its own plan, by Gumbel's
trick with a straight-through gradient (arXiv:1611.01144, section 2.2). A multiplier prices expected
cost above the budget, and rises as long as there is any: dual ascent on a Lagrangian. Nothing here
depends on the task or the size: costs are shares, and the multiplier moves by factors.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.cost.budget import Budget, Choice

# The part of the steps in which all plans are drawn alike, so that new weights learn first.
EVEN = 0.2
# Temperature of the gradient: from the first to the last step, linearly.
HOT, COLD = 1.0, 0.5
# Step of the logits; Adam makes it independent of the size of losses and costs.
RATE = 0.1
BETAS = (0.9, 0.99)
# The multiplier's logarithm begins at START. In each step it grows by ASCENT times the excess, as a
# share of what options can change; DAMPING times the excess is added to it, against overshooting.
START, ASCENT, DAMPING = math.log(1e-2), 0.5, 5.0


class Layer(Protocol):
    """A layer that sums its options by the gates of each sequence, or runs one that is taken."""

    gates: Tensor | None
    taken: int


class LayerGates(nn.Module):
    """The logits of all layers, and the multiplier of the excess over a budget."""

    def __init__(self, layers: Sequence[Layer], budget: Budget, steps: int) -> None:
        """Gates that draw every option alike."""
        super().__init__()
        # No submodules: they belong to the network.
        self.layers, self.budget, self.steps = tuple(layers), budget, steps
        shape = (len(layers), len(budget.options))
        self.logits = nn.Parameter(torch.zeros(shape))
        # What dual ascent has added to the multiplier's logarithm, and how many steps were taken.
        self.ascent = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)
        low, high = budget.bounds
        self.register_buffer("costs", torch.tensor(budget.costs) / budget.full / (high - low))
        self.left = budget.left / budget.full / (high - low)

    def draw(self, sequences: int, rng: torch.Generator) -> None:
        """Draw a plan for each sequence of the next pass."""
        noise = torch.rand(
            (sequences, *self.logits.shape), generator=rng, device=self.logits.device
        )
        gumbel = -(-noise.clamp(1e-10, 1 - 1e-7).log()).log()
        done = float(self.ascent[1]) / self.steps
        soft = ((self.logits + gumbel) / (HOT + (COLD - HOT) * done)).softmax(-1)
        hard = functional.one_hot(soft.argmax(-1), soft.shape[-1])
        gates = hard + soft - soft.detach()  # (sequences, layers, options)
        for layer, gate in zip(self.layers, gates.unbind(1), strict=True):
            layer.gates = gate

    @property
    def excess(self) -> Float[Tensor, ""]:
        """Expected cost over the budget, as a share of what options can change."""
        costs = self.get_buffer("costs")
        return (self.logits.softmax(-1) * costs).sum() - self.left

    def penalty(self) -> Float[Tensor, ""]:
        """The priced excess, to be added to the loss."""
        excess = self.excess
        damped = DAMPING * float(excess.detach())
        return math.exp(START + float(self.ascent[0]) + damped) * excess

    @property
    def learning(self) -> bool:
        """Whether the logits learn in this step."""
        return float(self.ascent[1]) >= EVEN * self.steps

    @torch.no_grad()
    def update(self) -> None:
        """One step of dual ascent, after that of the logits."""
        if self.learning:
            self.ascent[0] += ASCENT * float(self.excess)
        self.ascent[1] += 1

    def probabilities(self) -> list[list[float]]:
        """The probability of each option of each layer, to six digits as in a record."""
        return [
            [float(f"{each:.6g}") for each in row]
            for row in self.logits.detach().double().softmax(-1).tolist()
        ]

    def choose(self) -> Choice:
        """Let each layer run the option that it has in the plan within the budget."""
        chosen = self.budget.rounded(self.probabilities())
        for layer, option in zip(self.layers, chosen, strict=True):
            layer.taken = option
        return chosen
