"""Attention chosen by gates: the options of a layer side by side, over one set of weights."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qkvbench.backends.torch.attention.layer import (
    Attention,
    Lengths,
    SourceStream,
    Stream,
)
from qkvbench.backends.torch.attention.ops import Heads
from qkvbench.backends.torch.cache.kv_cache import LayerCache
from qkvbench.backends.torch.models.block import Block
from qkvbench.model import Cycle, LentRoles, Model, with_layers
from qkvbench.variant import Derivation, Parameter, Plan, Role

# How a tensor is named whose name another option has for a tensor of another shape.
OF_SHAPE = "@"


class GatedAttention(nn.Module):
    """The sum of the outputs of several attention layers, each times its gate.

    Parameters with the same name and shape are one tensor, so W_q exists once. While it trains,
    `gates` has a number for each sequence and option; otherwise the option `taken` runs alone. An
    option that reads K and V of the layer below reads those of that layer's first option.
    """

    gates: Tensor | None
    taken: int
    no_rows: Tensor

    def __init__(self, plans: Sequence[Plan | None]) -> None:
        """The options by their plans; None is no attention. Weights are not initialized."""
        super().__init__()
        # Each is run with the weights below in the place of its own: they are no submodules.
        self.options = [None if plan is None else Attention(plan) for plan in plans]
        self.plans = tuple(plan for plan in plans if plan)
        self.parameters_by_name = _parameters(self.plans)
        self.tensors = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(each.shape))
                for name, each in self.parameters_by_name.items()
            }
        )
        self.gates, self.taken = None, 0
        self.register_buffer("no_rows", torch.empty(0), persistent=False)

    def forward(
        self,
        x: Stream,
        layer: LayerCache | None = None,
        lengths: Lengths | None = None,
        source: SourceStream | None = None,
        made: dict[Derivation, Heads] | None = None,
    ) -> Stream:
        """Attend over a whole sequence, as `Attention` does; nothing is cached."""
        assert layer is None, "a gated layer trains, and never decodes"
        del source
        made = {} if made is None else made
        if not self.training or self.gates is None:
            return self._output(self.taken, x, lengths, made)
        # Layers above read what the first option makes; the others make roots of their own.
        below, total = dict(made), torch.zeros_like(x)
        for option, gate in enumerate(self.gates.unbind(1)):
            if self.options[option] is not None:
                roots = dict(below) if option else made
                total = total + gate[:, None, None] * self._output(option, x, lengths, roots)
        return total

    def lent(self, roles: tuple[Role, ...], made: dict[Derivation, Heads]) -> dict[Role, Heads]:
        """K and V of the first option, for the layer above; `made` is this one's after the pass."""
        first = self.options[0]
        if first is None or (not self.training and self.taken != 0):
            # Nothing reads it: such an option is taken only above a layer with the first one.
            return {role: self.no_rows for role in roles}
        return first.lent(roles, made)

    def named_weights(self) -> dict[str, Tensor]:
        """The tensors of all options: by the plans' names, with a shape if there are several."""
        return {name: self.tensors[_key(name)] for name in self.parameters_by_name}

    def shared_names(self) -> dict[str, str]:
        """The name in `named_weights` of each `nn.Parameter`, by its torch name."""
        return {f"tensors.{_key(name)}": name for name in self.parameters_by_name}

    def _output(
        self, option: int, x: Stream, lengths: Lengths | None, made: dict[Derivation, Heads]
    ) -> Stream:
        attention = self.options[option]
        if attention is None:
            return torch.zeros_like(x)
        named = {
            each.name: self.tensors[_key(shared_name(each, self.parameters_by_name))]
            for each in attention.plan.parameters
        }
        own = attention.own_tensors(named)
        return functional_call(attention, own, (x, None, lengths, None, made))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        for each in self.options:
            if each is not None:
                each._apply(fn)
        return super()._apply(fn, recurse)


def add_gates(blocks: Sequence[Block], model: Model, options: Cycle) -> list[GatedAttention]:
    """Replace the attention of each block by a choice among options; the new layers.

    Each option is what it is if all other layers have the first one.
    """
    own, found = (options[0],) * len(blocks), []
    for number, block in enumerate(blocks):
        changed = [(*own[:number], each, *own[number + 1 :]) for each in options]
        plans = [with_layers(model, each).plans[number] for each in changed]
        layer = GatedAttention(plans)
        lenders = [each for plan in plans if plan for each in plan.lenders]
        block.lenders = tuple({each.role: each for each in lenders}.values())
        if lenders:
            blocks[number - 1].lends = LentRoles(tuple(each.role for each in block.lenders), ())
        # It does in a whole pass what any attention does.
        block.attention = cast(Attention, layer)
        found.append(layer)
    return found


def shared_name(parameter: Parameter, named: dict[str, Parameter]) -> str:
    """The name under which several options share this parameter: that of the first has no shape."""
    first = named.get(parameter.name)
    if first is None or first.shape == parameter.shape:
        return parameter.name
    return f"{parameter.name}{OF_SHAPE}{'x'.join(map(str, parameter.shape))}"


def plain_name(name: str) -> str:
    """The plan's name of what options share under this name."""
    return name.partition(OF_SHAPE)[0]


def _parameters(plans: Sequence[Plan]) -> dict[str, Parameter]:
    """Each distinct parameter of the plans by the name under which they share it."""
    found: dict[str, Parameter] = {}
    for plan in plans:
        for each in plan.parameters:
            found.setdefault(shared_name(each, found), each)
    return found


def _key(name: str) -> str:
    """The name as a key of a ParameterDict, which has no dots."""
    return name.replace(".", "_")
