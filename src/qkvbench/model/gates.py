"""Learned gates as a value: what attention each layer may get, and what share all may cost."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from qkvbench.model.cycle import Cycle, VariantText
from qkvbench.model.spec import Model
from qkvbench.variant import NO_ATTENTION, ROLES, LayerBelow, write

# What a target bounds: bytes of the cache, learned parameters, multiply-accumulates of a forward
# pass, or the measured time of a decode step.
Quantity = Literal["cache", "params", "macs", "latency"]
OF_A_LENGTH = ("macs", "latency")
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
QUANTITY_NAMES: Mapping[Quantity, str] = {
    "cache": "cache",
    "params": "parameters",
    "macs": "multiply-accumulates",
    "latency": "time of a step",
}

_SHARE = r"(\d+(?:\.\d+)?)%"
_TARGET = re.compile(rf"([a-z]+)={_SHARE}(?:@(\d+))?")
_LOSS = re.compile(rf"loss={_SHARE}(?::([a-z]+)(?:@(\d+))?)?")
_EXAMPLE = (
    "write cache=50%, params=80%, macs=80% or macs=80%@8192, latency=80%@8192,\n"
    "or loss=1% for the least cache within that loss; loss=1%:latency@8192 for another cost."
)


@dataclass(frozen=True)
class Target:
    """The most that a plan may cost: a share of the model without gates.

    ``tokens`` is the length at which MACs and latency are counted; `at_length` sets it.
    """

    quantity: Quantity
    share: float
    tokens: int | None = None

    def at_length(self, tokens: int) -> "Target":
        """The same target at this length, if it needs one and has none."""
        needs = self.quantity in OF_A_LENGTH and self.tokens is None
        return replace(self, tokens=tokens) if needs else self

    def __str__(self) -> str:
        """The text that `parse_target` reads."""
        at = "" if self.tokens is None else f"@{self.tokens}"
        return f"{self.quantity}={100 * self.share:g}%{at}"


@dataclass(frozen=True)
class LossTarget:
    """The most that the loss may grow, as a share; the least of ``quantity`` within it is wanted.

    The loss is compared with that of all layers as they are after as many steps.
    """

    growth: float
    quantity: Quantity = "cache"
    tokens: int | None = None

    def at(self, share: float) -> Target:
        """The target that bounds the cost by this share."""
        return Target(self.quantity, share, self.tokens)

    def __str__(self) -> str:
        """The text that `parse_target` reads."""
        at = "" if self.tokens is None else f"@{self.tokens}"
        return f"loss={100 * self.growth:g}%:{self.quantity}{at}"


def parse_target(text: str) -> Target | LossTarget:
    """The target of a text such as ``cache=50%``, ``macs=80%@8192`` or ``loss=1%:params``.

    ValueError if it is none.
    """
    bounds_loss = text.startswith("loss=")
    found = (_LOSS if bounds_loss else _TARGET).fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no target; {_EXAMPLE}")
    percent, name = (found[1], found[2] or "cache") if bounds_loss else (found[2], found[1])
    if name not in QUANTITIES:
        raise ValueError(f"'{text}' is no target; {_EXAMPLE}")
    quantity: Quantity = name
    share, tokens = float(percent) / 100, found[3] and int(found[3])
    if not 0 < share < 1:
        raise ValueError(f"'{text}' is no share between 0 and 100 %; {_EXAMPLE}")
    if tokens == 0 or (tokens and quantity not in OF_A_LENGTH):
        raise ValueError(f"The length behind '@' is of macs and latency, from 1 on; {_EXAMPLE}")
    if bounds_loss:
        return LossTarget(share, quantity, tokens or None)
    return Target(quantity, share, tokens or None)


@dataclass(frozen=True)
class Gates:
    """A choice among ``options`` in each layer, learned under a target.

    The first option is the attention of the model itself. An option that reads K and V of the
    layer below can be taken if that layer has the first option. ``latencies_s`` are the times that
    one layer of each option takes, if the target is a latency.
    """

    options: tuple[VariantText, ...]
    target: Target
    latencies_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options among which there is nothing to choose, or that read a distant layer."""
        if len(set(self.options)) < max(2, len(self.options)):
            raise ValueError("A gate chooses among two options or more, all different.")
        for each in self.options:
            if each.scores.first_value:
                raise ValueError(
                    f"{write(each)} mixes in V of the first layer, which may have none in a plan; "
                    "leave it out of the options."
                )
            below = {each.source(role) for role in ROLES} - {LayerBelow(1)}
            if any(isinstance(one, LayerBelow) for one in below):
                raise ValueError(
                    f"{write(each)} reads a layer that may have no K and V in a plan; a layer can "
                    "read those of the next one below only: q,k=K(-1),v=V(-1)."
                )
        if self.options[0].reads_below:
            raise ValueError("The first option is a layer's own attention, with its own K and V.")

    @property
    def borrowed(self) -> frozenset[int]:
        """The options that read K and V of the layer below, which must have the first option."""
        return frozenset(number for number, each in enumerate(self.options) if each.reads_below)


def check_gates(model: Model, gates: Gates) -> None:
    """ValueError if the layers of this model cannot have such gates."""
    if len(model.towers) > 1:
        raise ValueError(
            f"{model.name} has two inputs, and gates are for models of one: a language model, or "
            "an encoder."
        )
    own = {block.attention and block.attention.variant for block in model.blocks}
    if own != {gates.options[0]} or NO_ATTENTION in own:
        raise ValueError(
            f"All layers of {model.name} must have the first option, {write(gates.options[0])}; "
            f"they have {model.variant}."
        )
    plain = all(
        (block.norm_place, block.residual) == ("input", "sequential") for block in model.blocks
    )
    if NO_ATTENTION in gates.options and not plain:
        raise ValueError(
            f"The blocks of {model.name} are no plain pre-norm blocks, so one whose gate takes "
            "none is not a block without attention; leave none out of the options."
        )


def with_layers(model: Model, layers: Cycle) -> Model:
    """The model with these variants, one for each layer; a layer may have no attention."""
    assert len(layers) == len(model.blocks), "a plan has one variant for each layer"
    return model.with_variant(layers)
