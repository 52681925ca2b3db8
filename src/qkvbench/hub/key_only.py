"""Multi-head attention without rotation keeps K alone: V is K times W_K⁻¹W_V.

With x W_K + b_K = K, V is (K − b_K) W_K⁻¹W_V + b_V, exactly where W_K is square and can be
inverted (arXiv:2503.05840). A weighted sum of V rows is then made of the same sum of whole K rows,
so V is never made; each head sums rows as wide as the model instead of its own share of them. That
saves memory, not time.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.reading import Allowed, Queries, shares, stand_in, stretches
from qkvbench.hub.rows import Heads, Rows

# V may be off by this share of its size. Rounding K moves V by at most the condition number of
# W_K, times the step of the type in which K is kept; for random inputs it is some 25 times less.
TOLERANCE = 5e-3
# No weight has changed so often: weights that were stale when they were copied stay so.
NEVER = -1

Square = Float[Tensor, "d_model d_model"]
Bias = Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Weights:
    """The projections of one layer as x W + b, views of its parameters."""

    key: Square
    key_bias: Bias | None
    value: Square
    value_bias: Bias | None


@dataclass(frozen=True)
class Condition:
    """Whether V can be made of K in one layer.

    ``loss`` bounds how far V may be off, as a share of its size.
    """

    layer: int
    number: float
    loss: float
    tolerance: float

    @property
    def fits(self) -> bool:
        """Whether it is within the tolerance."""
        return self.loss <= self.tolerance


@dataclass(frozen=True)
class KeyOnly:
    """How V is made of K in one layer; ``map`` is W_K⁻¹W_V, the columns of one head together."""

    layer: int
    map: Float[Tensor, "heads d_model head_dim"]
    key_bias: Float[Tensor, " d_model"]
    value_bias: Float[Tensor, "heads one head_dim"]
    made_of: tuple[tuple[Tensor, int], ...]

    def tables(self) -> int:
        """Bytes that reading needs beside the rows: the map has the size of W_V."""
        return self.map.untyped_storage().nbytes()

    @property
    def stale(self) -> bool:
        """Whether the weights have changed since, or are elsewhere or of another type."""
        place = self.map.device, self.map.dtype
        return any(
            _changes(weight) != version or (weight.device, weight.dtype) != place
            for weight, version in self.made_of
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeyOnly":
        """The same for the weights of a copied model, which count their changes anew."""
        copies = [(deepcopy(weight, memo), weight, version) for weight, version in self.made_of]
        made_of = tuple(
            (copied, _changes(copied) if _changes(weight) == version else NEVER)
            for copied, weight, version in copies
        )
        return replace(self, made_of=made_of)


def conditions(model: nn.Module, tolerance: float = TOLERANCE) -> tuple[Condition, ...]:
    """How well V can be made of K in each layer of a model; none where it is not known."""
    found: list[Condition] = []
    kinds = WEIGHTS | ENCODERS
    for number, attention in _layers(model, kinds):
        weights = kinds[type(attention).__name__](attention)
        sizes = torch.linalg.svdvals(weights.key.detach().double())
        condition = float(sizes[0] / sizes[-1]) if sizes[-1] > 0 else float("inf")
        step = torch.finfo(weights.key.dtype).eps
        found.append(Condition(number, condition, condition * step, tolerance))
    return tuple(found)


def check_known(model: nn.Module) -> None:
    """Refuse a model none of whose layers can keep K alone; ValueError says why."""
    if _layers(model, WEIGHTS):
        return
    rotary = any("rotary" in name for name, _ in model.named_modules())
    why = (
        "it keeps K turned by position, so V is no product of it"
        if rotary
        else "it has no cache, or it is not known where its projections are"
    )
    raise ValueError(
        f"No slim cache for {type(model).__name__}: {why}.\n"
        "There is one for models whose K and V are one projection (Gemma 4 with attention_k_eq_v), "
        "and for GPT-2 and OPT."
    )


@torch.no_grad()
def key_only(model: nn.Module, layers: tuple[int, ...]) -> dict[int, KeyOnly]:
    """How V is made of K in these layers."""
    made: dict[int, KeyOnly] = {}
    for number, attention in _layers(model, WEIGHTS):
        if number not in layers:
            continue
        weights, heads = WEIGHTS[type(attention).__name__](attention), attention.num_heads
        like = weights.key
        mapped = torch.linalg.solve(weights.key.double(), weights.value.double()).to(like.dtype)
        biases = [
            torch.zeros_like(like[0]) if bias is None else bias.detach().clone()
            for bias in (weights.key_bias, weights.value_bias)
        ]
        made[number] = KeyOnly(
            number,
            mapped.unflatten(1, (heads, -1)).transpose(0, 1).contiguous(),
            biases[0],
            biases[1].view(heads, 1, -1),
            tuple((parameter, _changes(parameter)) for parameter in attention.parameters()),
        )
    return made


def _changes(weight: Tensor) -> int:
    """How often the weight was written to; one that was made in inference mode does not count."""
    return 0 if weight.is_inference() else weight._version


class KeyReader:
    """The K rows of one layer, all heads beside each other, and attention over them."""

    def __init__(self, how: KeyOnly, reserve: int = 0) -> None:
        """No rows yet."""
        self.how = how
        self.keys = Rows(reserve)

    @property
    def rows(self) -> tuple[Rows, ...]:
        """All that lies in memory."""
        return (self.keys,)

    def append(
        self, key: Heads, value: Heads, position_ids: Tensor | None
    ) -> tuple[Heads, Heads] | None:
        """Keep new rows; K and V where these are all that there are."""
        first = not self.keys.length
        self.keys.append(key.transpose(1, 2).flatten(2)[:, None])
        return (key, value) if first else None

    def handed(self) -> tuple[Heads, Heads]:
        """What the layer is given: K, and for V a stand-in."""
        keys = self._heads(self.keys.kept)
        return keys, stand_in(keys, self)

    def whole(self) -> tuple[Heads, Heads]:
        """K, and V, made for now."""
        flat = self.keys.kept - self.how.key_bias
        return self._heads(self.keys.kept), flat @ self.how.map + self.how.value_bias

    def attend(self, query: Queries, allowed: Allowed | None, scaling: float) -> Queries:
        """softmax(q·k·scaling)·v; V is never made."""
        kept = self.keys.kept
        batch, heads, queries, _ = query.shape
        tiles = (self._heads(kept[:, :, rows]) for rows in stretches(kept.shape[2]))
        products = torch.cat([query @ keys.mT for keys in tiles], dim=-1) * scaling
        weights = shares(products, allowed).to(kept.dtype)
        summed = weights.flatten(1, 2) @ kept[:, 0]
        # Weights sum to 1, so the bias comes off the sum as it came onto each row.
        seen = summed.view(batch, heads, queries, -1) - self.how.key_bias
        return seen @ self.how.map + self.how.value_bias

    def _heads(self, flat: Heads) -> Heads:
        """Rows of all heads, cut into heads; a view."""
        return flat[:, 0].unflatten(-1, (len(self.how.map), -1)).transpose(1, 2)


def _gpt2(attention: nn.Module) -> Weights:
    """One matrix for Q, K and V, which is applied from the right."""
    fused: nn.Module = attention.get_submodule("c_attn")
    _, key, value = fused.get_parameter("weight").chunk(3, dim=1)
    _, key_bias, value_bias = fused.get_parameter("bias").chunk(3)
    return Weights(key, key_bias, value, value_bias)


def _opt(attention: nn.Module) -> Weights:
    key, value = (attention.get_submodule(name) for name in ("k_proj", "v_proj"))
    assert isinstance(key, nn.Linear)
    assert isinstance(value, nn.Linear)
    return Weights(key.weight.mT, key.bias, value.weight.mT, value.bias)


def _bert(attention: nn.Module) -> Weights:
    key, value = (attention.get_submodule(name) for name in ("key", "value"))
    assert isinstance(key, nn.Linear)
    assert isinstance(value, nn.Linear)
    return Weights(key.weight.mT, key.bias, value.weight.mT, value.bias)


# How the projections of an attention layer are found, by the name of its class.
WEIGHTS: dict[str, Callable[[nn.Module], Weights]] = {
    "GPT2Attention": _gpt2,
    "OPTAttention": _opt,
}
# An encoder keeps no cache; what its weights are like can be told all the same.
ENCODERS: dict[str, Callable[[nn.Module], Weights]] = {"BertSelfAttention": _bert}


def _layers(model: nn.Module, kinds: Mapping[str, object]) -> list[tuple[int, Any]]:
    """The layers of these kinds that attend to their own text, by number."""
    known = [part for part in model.modules() if type(part).__name__ in kinds]
    own = [part for part in known if not getattr(part, "is_cross_attention", False)]
    return list(enumerate(own))
