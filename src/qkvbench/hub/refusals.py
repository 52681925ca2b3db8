"""Why a model cannot be slim, in the words of its user."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qkvbench.hub.families import ENCODERS, EXPANDED, LINEAR, NOT_SLIM, SHARED_ROOT
from qkvbench.hub.key_only import Condition

# Layers that an error message names.
MAX_NAMED_LAYERS = 6


def not_slim(model: nn.Module) -> str:
    """The message for a model none of whose layers can be slim: why, and which models can."""
    return (
        f"No slim cache for {type(model).__name__}: {reason_of(model)}.\n{supported()}\n"
        "To add an attention class, write its row in qkvbench/hub/families.py."
    )


def supported() -> str:
    """The models that can be slim, in a sentence."""
    names = (*SHARED_ROOT, *EXPANDED, *LINEAR)
    families = dict.fromkeys(
        name.partition("Attention")[0].removesuffix("Text").removesuffix("Self") for name in names
    )
    return f"There is one for {', '.join(families)}, if K and V are tied, copied or linear."


def too_inexact(
    model: PreTrainedModel,
    known: Sequence[Condition],
    refused: Sequence[Condition],
    *,
    with_cross: bool,
) -> str:
    """The message: in which layers V cannot be made from K, why, and what to write instead."""
    named = ", ".join(f"{one.layer} ({one.number:.2g})" for one in refused[:MAX_NAMED_LAYERS])
    more = f" and {len(refused) - MAX_NAMED_LAYERS} more" if len(refused) > MAX_NAMED_LAYERS else ""
    fitting = [one.layer for one in known if one.fits]
    worst = max(one.error_bound for one in refused)
    instead = (
        f"Write slim(model, layers={fitting}), and the others keep both."
        if fitting or with_cross
        else "Load the model in a wider type (dtype=torch.float32), or use the library's own cache."
    )
    return (
        f"In {type(model).__name__} V cannot be made from K closely enough in layers (with the "
        f"condition number of W_K) {named}{more}.\n"
        f"In {str(model.dtype).removeprefix('torch.')} V could be off by {worst:.2g} of its size; "
        f"the tolerance is {refused[0].tolerance:g}.\n{instead}"
    )


def reason_of(model: nn.Module) -> str:
    """Why there is no slim cache for this model."""
    parts: list[Any] = list(model.modules())
    if named := next((NOT_SLIM[n] for p in parts if (n := type(p).__name__) in NOT_SLIM), None):
        return named
    if any(type(part).__name__ in LINEAR for part in parts):
        return "its W_K is not square, or K is clipped, so K does not determine V"
    own = [p for p in parts if isinstance(getattr(p, "k_proj", None), nn.Module)]
    rotary = any("rotary" in name for name, _ in model.named_modules())
    if rotary and own and all(isinstance(getattr(p, "v_proj", None), nn.Module) for p in own):
        return "it caches K after RoPE, and V is a projection of its own, no linear map of that K"
    if any(type(part).__name__ in ENCODERS for part in parts):
        return "it is an encoder, which reads a text once and caches nothing"
    return "it has no cache, or its attention is not known here"
