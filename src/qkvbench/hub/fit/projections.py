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

from qkvbench.hub.families import Family, family_of, geometry_of, rotary_share_of
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
    # Radians per position of each pair of coordinates that RoPE rotates; None without RoPE.
    frequencies: Tensor | None = None

    @property
    def rotary(self) -> bool:
        """Whether keys are rotated by their positions."""
        return self.family.rotary

    @property
    def freedom(self) -> Literal["any", "complex", "none"]:
        """The maps of K that fold into the query: any; those that commute with RoPE; none."""
        # With RoPE on a part of a head its pairs are not those of the whole.
        if self.family.normed or rotary_share_of(self.attention.config) != 1:
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
            columns = [weight] if bias is None else [weight, bias[..., None]]
            rows = torch.cat([column.detach().double() for column in columns], dim=-1)
            heads[role] = rows.reshape(-1, size.head_dim, rows.shape[-1])
        bias = self.output.bias
        return Weights(
            **heads,
            o=self.output_heads().double(),
            output_bias=None if bias is None else bias.detach().double(),
        )

    def finished(self, output: Tensor) -> Tensor:
        """The layer's output, from that of its attention class, which may end before O."""
        return output if self.family.output else self.output(output)

    def output_heads(self) -> Float[Tensor, "heads d_model head_dim"]:
        """The output projection by head: a view of the layer's weights."""
        size, matrix = self.geometry, self._matrix(self.output).detach()
        return matrix.unflatten(1, (size.heads, size.head_dim)).transpose(0, 1)

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Change the layer's weights to these."""
        width = self.geometry.d_model
        for role in ROLES:
            rows: Tensor = getattr(weights, role).flatten(0, 1)
            weight, bias = self._parts(role)
            weight.copy_(rows[:, :width].reshape(weight.shape))
            if bias is not None:
                bias.copy_(rows[:, width].reshape(bias.shape))
        self._matrix(self.output).copy_(weights.o.transpose(0, 1).flatten(1))
        if weights.output_bias is not None:
            self.output.bias.copy_(weights.output_bias)

    def _linear(self, role: Role) -> Any:
        names = self.family.names
        return getattr(self.attention, names if isinstance(names, str) else names[role])

    def _parts(self, role: Role) -> tuple[Tensor, Tensor | None]:
        """Views of the weight (outputs, inputs) and the bias of one role.

        If they are fused by head, outputs are two dimensions: heads and their numbers.
        """
        linear, size = self._linear(role), self.geometry
        weight, bias = self._matrix(linear), linear.bias
        if not isinstance(self.family.names, str):
            return weight, bias
        lengths = [heads * size.head_dim for heads in (size.heads, size.kv_heads, size.kv_heads)]
        place = ROLES.index(role)

        def part(whole: Tensor) -> Tensor:
            if self.family.fused_by == "head":
                return whole.unflatten(0, (-1, len(ROLES), size.head_dim))[:, place]
            return whole.split(lengths)[place]

        return part(weight), None if bias is None else part(bias)

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
    rotary = [part for name, part in model.named_modules() if name.endswith("rotary_emb")]
    frequencies: Any = rotary[0].inv_freq if rotary else None
    found = []
    for number, (name, attention) in enumerate(parts):
        parent = model.get_submodule(name.rpartition(".")[0])
        output = (
            attention.get_submodule(family.output)
            if family.output
            else parent.get_submodule(OUTPUTS[family.kind])
        )
        size = geometry_of(config)
        found.append(Layer(number, name, attention, output, family, size, frequencies))
    return tuple(found)


def block_of(model: nn.Module, name: str) -> Any:
    """The block that has the module of this name: a member of a list of modules."""
    while not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList):
        name = name.rpartition(".")[0]
    return model.get_submodule(name)
