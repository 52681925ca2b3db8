"""A slim cache of K alone: multi-head attention without RoPE, whose V is a linear map of K.

With K = x W_K + b_K, V is (K − b_K) W_K⁻¹W_V + b_V, exactly if W_K is square and invertible
(arXiv:2503.05840). The weighted sum of V is that map of the weighted sum of K, so V is never made,
but each head sums rows as wide as the model. That saves memory, not time.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.backends.torch.attention.ops import Maps, absorb_into_output
from qkvbench.hub.families import ENCODERS, LINEAR, key_only_plan
from qkvbench.hub.growing_tensor import GrowingTensor, Heads
from qkvbench.hub.linear_attention import linear_attentions, weights_of
from qkvbench.hub.slim_attention import Mask, Queries, attention_weights, placeholder, tiles
from qkvbench.variant import Geometry, Plan

# Largest relative error of a recomputed tensor. `conditions` predicts it; a slim cache checks it.
TOLERANCE = 5e-3
# The attention classes on whose weights `conditions` reports.
_KNOWN = {**LINEAR, **ENCODERS}


@dataclass(frozen=True)
class Condition:
    """How well V can be made from K in one layer.

    Rounding K moves V by at most ``number``, the condition number of W_K, times the rounding step
    of the dtype: ``error_bound`` as a share of V. Random inputs move it about 25 times less.
    """

    layer: int
    number: float
    error_bound: float
    tolerance: float

    @property
    def fits(self) -> bool:
        """Whether the bound is within the tolerance."""
        return self.error_bound <= self.tolerance


def conditions(model: nn.Module, tolerance: float = TOLERANCE) -> tuple[Condition, ...]:
    """How well V can be made from K in each layer of a model; none if no layer is known."""
    return tuple(
        condition_of(number, weights_of(part, _KNOWN[type(part).__name__]).key, tolerance)
        for number, part in linear_attentions(model, _KNOWN)
        if is_square(part)
    )


def condition_of(layer: int, key: Tensor, tolerance: float = TOLERANCE) -> Condition:
    """How well V can be made from K by the matrix of K; on the meta device that is not known."""
    if key.is_meta:
        return Condition(layer, math.nan, 0.0, tolerance)
    sizes = torch.linalg.svdvals(key.detach().double())
    number = float(sizes[0] / sizes[-1]) if sizes[-1] > 0 else float("inf")
    return Condition(layer, number, number * torch.finfo(key.dtype).eps, tolerance)


def is_square(attention: nn.Module) -> bool:
    """Whether W_K is square, without which K does not determine V."""
    inputs, width = weights_of(attention, _KNOWN[type(attention).__name__]).key.shape
    return inputs == width


@dataclass(frozen=True)
class ValueFromKey:
    """How one layer makes V from K: ``value_map`` is W_K⁻¹W_V, transposed, by head."""

    layer: int
    plan: Plan
    value_map: Float[Tensor, "heads head_dim d_model"]
    key_bias: Float[Tensor, " d_model"]
    value_bias: Float[Tensor, "heads one head_dim"]
    tolerance: float


@torch.no_grad()
def values_from_keys(
    model: nn.Module, layers: tuple[int, ...], tolerance: float = TOLERANCE
) -> dict[int, ValueFromKey]:
    """How these layers make V from K."""
    made: dict[int, ValueFromKey] = {}
    for number, attention in linear_attentions(model):
        if number not in layers:
            continue
        weights = weights_of(attention)
        key, value, heads = weights.key, weights.value, weights.heads
        plan = key_only_plan(Geometry(len(key), heads, heads, len(key) // heads))
        value_map = torch.linalg.solve(key.double(), value.double()).to(key.dtype)
        key_bias, value_bias = (
            torch.zeros_like(key[0]) if bias is None else bias.detach().clone()
            for bias in (weights.key_bias, weights.value_bias)
        )
        made[number] = ValueFromKey(
            number,
            plan,
            value_map.mT.unflatten(0, (heads, -1)).contiguous(),
            key_bias,
            value_bias.view(heads, 1, -1),
            tolerance,
        )
    return made


class KeyOnlyReader:
    """The cached K of one layer, all heads side by side in a row, and attention over it."""

    def __init__(self, recipe: ValueFromKey, reserve: int = 0) -> None:
        """An empty cache with room for `reserve` tokens."""
        self.recipe = recipe
        self.keys = GrowingTensor(reserve)

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        return (self.keys,)

    def append(self, key: Heads, value: Heads, position_ids: Tensor | None) -> None:
        """Cache the keys of new tokens."""
        value_map = self.recipe.value_map
        if (key.dtype, key.device) != (value_map.dtype, value_map.device):
            raise ValueError(
                f"Layer {self.recipe.layer} was moved or cast after slim.\nCall slim(model) again."
            )
        self.keys.append(key.transpose(1, 2).flatten(2)[:, None])  # (batch, 1, time, d_model)

    def placeholders(self) -> tuple[Heads, Heads]:
        """K, and a placeholder for V."""
        keys = self._heads(self.keys.rows)
        return keys, placeholder(keys, self)

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        keys = self.keys.rows[:, :, rows]
        values = (keys - self.recipe.key_bias) @ self.recipe.value_map.mT
        return self._heads(keys), values + self.recipe.value_bias

    def attend(self, query: Queries, mask: Mask | None, scaling: float) -> Queries:
        """softmax(q·k·scaling + mask)·v, from the weighted sum of K."""
        rows = self.keys.rows
        keys = (self._heads(rows[:, :, tile]) for tile in tiles(rows.shape[2]))
        scores = torch.cat([query @ each.mT for each in keys], dim=-1) * scaling
        return self.weighted(attention_weights(scores, mask).to(rows.dtype))

    def weighted(self, weights: Float[Tensor, "batch heads queries slots"]) -> Queries:
        """The sum of V with these weights, from that of K."""
        recipe, rows = self.recipe, self.keys.rows
        batch, heads, queries, _ = weights.shape
        context = (weights.flatten(1, 2) @ rows[:, 0]).view(batch, heads, queries, -1)
        # Attention weights sum to 1, so the sum of K has b_K once, as each row has.
        maps: Maps = {"v": recipe.value_map}
        output = absorb_into_output(context - recipe.key_bias, recipe.plan.absorbed_by_output, maps)
        return output + recipe.value_bias

    def _heads(self, rows: Heads) -> Heads:
        """A view of rows of all heads, cut into heads."""
        return rows[:, 0].unflatten(-1, (self.recipe.plan.heads("k"), -1)).transpose(1, 2)
