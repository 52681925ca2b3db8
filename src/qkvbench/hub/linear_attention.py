"""The K and V projections of attention without norm and RoPE, read from a model's modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.families import LINEAR, LinearAttention
from qkvbench.hub.growing_tensor import Heads

Matrix = Float[Tensor, "inputs width"]
Bias = Float[Tensor, " width"]


@dataclass(frozen=True)
class KeyValueWeights:
    """The projections of one layer as x W + b, views of its parameters."""

    key: Matrix
    key_bias: Bias | None
    value: Matrix
    value_bias: Bias | None
    heads: int

    def keys(self, x: Float[Tensor, "batch time inputs"]) -> Heads:
        """K of these rows."""
        return self._heads(x @ self.key, self.key_bias)

    def values(self, x: Float[Tensor, "batch time inputs"]) -> Heads:
        """V of these rows."""
        return self._heads(x @ self.value, self.value_bias)

    def maps(self, matrix: Matrix) -> Float[Tensor, "heads head_dim inputs"]:
        """One of the matrices, cut into heads."""
        return matrix.mT.unflatten(0, (self.heads, -1))

    def _heads(self, rows: Tensor, bias: Bias | None) -> Heads:
        rows = rows if bias is None else rows + bias
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def linear_attentions(
    model: nn.Module, known: Mapping[str, LinearAttention] = LINEAR
) -> list[tuple[int, nn.Module]]:
    """The self-attention modules of these classes that have a cache, each with its number."""
    found = [
        part
        for name, part in model.named_modules()
        if (row := known.get(type(part).__name__))
        and not _is_cross(name, row)
        and not getattr(part, "is_cross_attention", False)
        # A class that attends to an encoder also serves in encoders, which have no cache.
        and (row.cross is None or getattr(part, "is_decoder", False))
        and not any(getattr(part, each) for each in row.unless)
    ]
    return [(_number(part, place), part) for place, part in enumerate(found)]


def cross_attentions(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """The modules of these classes that attend to an encoder's output, each with its number."""
    found = [
        part
        for name, part in model.named_modules()
        if type(part).__name__ in LINEAR and _is_cross(name, LINEAR[type(part).__name__])
    ]
    return [(_number(part, place), part) for place, part in enumerate(found)]


def weights_of(attention: nn.Module, row: LinearAttention | None = None) -> KeyValueWeights:
    """The weights of K and V, from a fused module of Q, K and V or from linear modules."""
    row = row or LINEAR[type(attention).__name__]
    heads: int = getattr(attention, row.heads)
    if not isinstance(row.names, str):
        linear: list[Any] = [attention.get_submodule(row.names[role]) for role in ("k", "v")]
        key, value = (each.weight.mT for each in linear)
        return KeyValueWeights(key, linear[0].bias, value, linear[1].bias, heads)
    fused: Any = attention.get_submodule(row.names)
    weight = fused.weight if row.transposed else fused.weight.mT
    _, key, value = _roles(weight, row, heads)
    bias: Any = getattr(fused, "bias", None)
    _, key_bias, value_bias = (None,) * 3 if bias is None else _roles(bias, row, heads)
    return KeyValueWeights(key, key_bias, value, value_bias, heads)


def _roles(columns: Tensor, row: LinearAttention, heads: int) -> tuple[Tensor, ...]:
    """The columns of Q, K and V in a fused matrix or bias."""
    if row.fused_by == "role":
        return columns.chunk(3, dim=-1)
    return tuple(each.flatten(-2) for each in columns.unflatten(-1, (heads, 3, -1)).unbind(-2))


def _is_cross(name: str, row: LinearAttention) -> bool:
    return row.cross is not None and name.rpartition(".")[2] == row.cross


def _number(attention: nn.Module, place: int) -> int:
    """The number of the layer, which its cache uses; encoders have none."""
    number = getattr(attention, "layer_idx", getattr(attention, "layer_id", None))
    return place if number is None else number
