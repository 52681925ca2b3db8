"""The projections of each attention layer of a model of transformers, read and written as heads.

Matrices map a column of inputs. If a layer has biases, they are the last column of Q, K and V, and
the input has a one behind it, so that a bias is fitted as any weight is.
"""

import importlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.families import Family, family_of, geometry_of
from qkvbench.variant import ROLES, Geometry, Role

# Modules of the output projection if it is not part of the attention class: from its parent.
OUTPUTS = {"bert": "output.dense"}

Heads = Float[Tensor, "_heads head_dim inputs"]


@dataclass(frozen=True, eq=False)
class Weights:
    """Q, K, V and O of one layer by head, in fp64; `output_bias` is None if there is none.

    O is (heads, d_model, head_dim): the output is the sum over heads of O times the head.
    """

    q: Heads
    k: Heads
    v: Heads
    o: Float[Tensor, "heads d_model head_dim"]
    output_bias: Float[Tensor, " d_model"] | None = None

    @property
    def group(self) -> int:
        """Query heads of one key/value head."""
        return len(self.q) // len(self.k)

    def readers(self, head: int) -> slice:
        """The query heads that read this key/value head."""
        return slice(head * self.group, (head + 1) * self.group)

    def replaced(self, **parts: Tensor) -> "Weights":
        """The weights with some parts changed."""
        return replace(self, **parts)


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention layer inside a model: the library's module, and that of its output."""

    number: int
    name: str
    attention: Any
    output: Any
    family: Family
    geometry: Geometry

    @property
    def rotary(self) -> bool:
        """Whether keys are rotated by their positions."""
        return self.family.rotary

    @property
    def freedom(self) -> Literal["any", "complex", "none"]:
        """The maps of K that fold into the query: any; those that commute with RoPE; none."""
        if self.family.normed:
            return "none"
        return "complex" if self.rotary else "any"

    @property
    def key_scale(self) -> Tensor | None:
        """The learned scale of the norm of keys; None without a norm."""
        norm = getattr(self.attention, "k_norm", None)
        return None if norm is None else norm.weight.detach().double()

    @property
    def centred(self) -> bool:
        """Whether constants of K and V cost nothing: no RoPE, and biases to put them into."""
        return not self.rotary and self.biased and self.output.bias is not None

    @property
    def biased(self) -> bool:
        """Whether Q, K and V have biases, which are their last column."""
        return self._linear("k").bias is not None

    def read(self) -> Weights:
        """A copy of the layer's weights."""
        size, heads = self.geometry, {}
        for role in ROLES:
            weight, bias = self._parts(role)
            columns = [weight] if bias is None else [weight, bias[:, None]]
            rows = torch.cat([column.detach().double() for column in columns], dim=1)
            heads[role] = rows.reshape(-1, size.head_dim, rows.shape[1])
        o = self._matrix(self.output).detach().double()  # (d_model, heads * head_dim)
        bias = self.output.bias
        return Weights(
            **heads,
            o=o.reshape(size.d_model, size.heads, size.head_dim).transpose(0, 1),
            output_bias=None if bias is None else bias.detach().double(),
        )

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Change the layer's weights to these."""
        width = self.geometry.d_model
        for role in ROLES:
            rows: Tensor = getattr(weights, role).flatten(0, 1)
            weight, bias = self._parts(role)
            weight.copy_(rows[:, :width])
            if bias is not None:
                bias.copy_(rows[:, width])
        self._matrix(self.output).copy_(weights.o.transpose(0, 1).flatten(1))
        if weights.output_bias is not None:
            self.output.bias.copy_(weights.output_bias)

    def _linear(self, role: Role) -> Any:
        names = self.family.names
        return getattr(self.attention, names if isinstance(names, str) else names[role])

    def _parts(self, role: Role) -> tuple[Tensor, Tensor | None]:
        """Views of the weight (outputs, inputs) and the bias of one role."""
        linear, size = self._linear(role), self.geometry
        weight, bias = self._matrix(linear), linear.bias
        if not isinstance(self.family.names, str):
            return weight, bias
        lengths = [heads * size.head_dim for heads in (size.heads, size.kv_heads, size.kv_heads)]
        place = ROLES.index(role)
        return weight.split(lengths)[place], bias.split(lengths)[place]

    def _matrix(self, linear: Any) -> Tensor:
        """The weight as (outputs, inputs)."""
        return linear.weight.T if self.family.transposed else linear.weight


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """The attention layers of a model of the library's own classes, in order.

    ValueError if the architecture is not one of the families.
    """
    config: Any = model.config
    family = family_of(config)
    kind = getattr(importlib.import_module(family.module), family.attention)
    parts = [(name, part) for name, part in model.named_modules() if type(part) is kind]
    if not parts:
        raise ValueError(
            f"The {type(model).__name__} has no {family.attention}: it has a qkv_mode already.\n"
            "Give the model that it was made from."
        )
    found = []
    for number, (name, attention) in enumerate(parts):
        parent = model.get_submodule(name.rpartition(".")[0])
        output = (
            attention.get_submodule(family.output)
            if family.output
            else parent.get_submodule(OUTPUTS[family.kind])
        )
        found.append(Layer(number, name, attention, output, family, geometry_of(config)))
    return tuple(found)
