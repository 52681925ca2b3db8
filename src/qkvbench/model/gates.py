"""Learned gates as a value: what attention each layer may get, and what share all may cost."""

import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from qkvbench.model.cycle import Cycle, VariantText
from qkvbench.model.spec import Model
from qkvbench.variant import NO_ATTENTION, write

# What a target bounds: bytes of the cache, learned parameters, multiply-accumulates of a forward
# pass, or the measured time of a decode step.
Quantity = Literal["cache", "params", "macs", "latency"]
OF_A_LENGTH = ("macs", "latency")
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

_TARGET = re.compile(r"([a-z]+)=(\d+(?:\.\d+)?)%(?:@(\d+))?")


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


def parse_target(text: str) -> Target:
    """The target of a text such as ``cache=50%`` or ``macs=80%@8192``; ValueError if it is none."""
    example = "write cache=50%, params=80%, macs=80% or macs=80%@8192, latency=80%@8192."
    if text.startswith("loss="):
        raise ValueError(
            f"'{text}' bounds the loss, and a search finds plans of a given cost.\n"
            f"Search at a few costs and keep the cheapest within that loss: {example}"
        )
    found = _TARGET.fullmatch(text)
    if found is None or found[1] not in QUANTITIES:
        raise ValueError(f"'{text}' is no target; {example}")
    quantity = cast(Quantity, found[1])
    share, tokens = float(found[2]) / 100, found[3] and int(found[3])
    if not 0 < share < 1:
        raise ValueError(f"'{text}' is no share between 0 and 100 %, which leaves something out.")
    if tokens == 0 or (tokens and quantity not in OF_A_LENGTH):
        raise ValueError(f"The length behind '@' is of macs and latency, from 1 on; {example}")
    return Target(quantity, share, tokens or None)


@dataclass(frozen=True)
class Gates:
    """A choice among ``options`` in each layer, learned under a target.

    The first option is the attention of the model itself. ``latencies_s`` are the times that one
    layer of each option takes, if the target is a latency.
    """

    options: tuple[VariantText, ...]
    target: Target
    latencies_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options among which there is nothing to choose, or that need a layer below."""
        if len(set(self.options)) < max(2, len(self.options)):
            raise ValueError("A gate chooses among two options or more, all different.")
        for each in self.options:
            if each.reads_below:
                raise ValueError(
                    f"{write(each)} reads a layer below, which may have no K and V in a plan; "
                    "leave it out of the options."
                )


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
