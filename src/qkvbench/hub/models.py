"""Models of transformers with ``qkv_mode`` in their config, made from the table of families.

Each is the library's own class in which attention is replaced after it was built, so that all else
(embeddings, norms, masks, heads, losses, generation) is the library's.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

from qkvbench.hub.attention import IMPLEMENTATION, PlannedAttention, attend
from qkvbench.hub.code import write_code
from qkvbench.hub.families import FAMILIES, Family, family_of
from qkvbench.hub.modes import Mode, equations, planned, variants
from qkvbench.variant.plan import ApplyRope, Plan

# Rotary frequencies that do not depend on how long a sequence has become.
FIXED = ("default", "linear", "yarn", "llama3")


def plans(config: PreTrainedConfig) -> tuple[Plan, ...]:
    """The plan of each layer; ValueError, with what to write instead, where there is none."""
    family = family_of(config)
    family.check(config)
    mode = getattr(config, "qkv_mode", "canonical")
    found = tuple(
        planned(variant, family.geometry(config), family.rope(config), family.normed)
        for variant in variants(mode, config.num_hidden_layers)
    )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in FIXED and any(ApplyRope() in plan.key_ops_on_read for plan in found):
        raise ValueError(
            f"rope_type={rope!r} turns a token by how long the sequence is when it is read, and "
            f"qkv_mode {mode!r} keeps one root that is turned on read.\n"
            f"Take one of {', '.join(FIXED)}, or a mode whose K and V have different roots."
        )
    return found


class Planned:
    """What a model with planned attention adds to the library's class, which comes behind it."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **more: Any) -> None:
        """The library's model, in which each layer's attention is the plan's."""
        # First, so that a mode that cannot be costs no building of a model.
        made = plans(config)
        library: Any = super()
        library.__init__(config, *args, **more)
        _replace_attention(self, config, made)

    @classmethod
    def from_pretrained(cls, *args: Any, **more: Any) -> Any:
        """As in the library, but attention that the checkpoint does not fit is refused."""
        told = more.pop("output_loading_info", False)
        library: Any = super()
        model, info = library.from_pretrained(*args, output_loading_info=True, **more)
        places = tuple(f"{name}." for name, _ in planned_layers(model))
        wrong = {
            name
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            for name in (key if isinstance(key, str) else key[0] for key in info[kind])
            if any(place in f".{name}" for place in places)
        }
        if wrong:
            raise ValueError(
                f"The checkpoint's attention is not that of qkv_mode {model.config.qkv_mode!r}: "
                f"{min(wrong)} is in only one of them.\nqkvbench.hub.converted(model, mode) makes "
                "a checkpoint of the library's one of this mode, where its weights allow it."
            )
        return (model, info) if told else model

    def save_pretrained(self, folder: Any, *args: Any, with_code: bool = False, **more: Any) -> Any:
        """As in the library; `with_code` puts code for those who have no qkvbench beside it.

        Whoever loads it that way has to pass trust_remote_code=True.
        """
        library: Any = super()
        saved = library.save_pretrained(folder, *args, **more)
        if with_code:
            whole: Any = self
            family = family_of(whole.config)
            names = {auto: family.named(auto) for auto in family.classes}
            write_code(Path(folder), {"AutoConfig": family.config, **names})
        return saved


def _replace_attention(model: Any, config: PreTrainedConfig, made: tuple[Plan, ...]) -> None:
    """Put a layer of its plan wherever the library's class of attention is."""
    family = family_of(config)
    old = getattr(importlib.import_module(family.module), family.attention)
    places = [name for name, part in model.named_modules() if type(part) is old]
    # Under a head that finds its body by AutoModel, the body has replaced its own already.
    kind = _kept_class(old)
    for layer, (place, plan) in enumerate(zip(places, made, strict=False)):
        parent, _, name = place.rpartition(".")
        like = model.get_submodule(place)
        attention = kind(plan, family, config, layer, like)
        attention.angles = _angles(model)
        attention.to(dtype=next(like.parameters()).dtype, device=next(like.parameters()).device)
        attention.train(like.training)
        setattr(model.get_submodule(parent), name, attention)
        attention.apply(model._init_weights)
        attention.start()


def _angles(model: Any) -> tuple[torch.nn.Module, ...]:
    """The module that makes angles of positions, where the architecture has one."""
    return tuple(part for name, part in model.named_modules() if name.endswith("rotary_emb"))[:1]


def planned_layers(model: Any) -> list[tuple[str, PlannedAttention]]:
    """Each layer's attention with its place, in order."""
    return [(n, part) for n, part in model.named_modules() if isinstance(part, PlannedAttention)]


@cache
def _kept_class(old: type) -> type[PlannedAttention]:
    """Planned attention that also passes for the class it replaces.

    The library asks for that class when it collects attention weights and draws initial values.
    """
    made: Any = type(f"Planned{old.__name__}", (PlannedAttention, old), {"__module__": __name__})
    return made


@cache
def config_class(family: Family) -> type[PreTrainedConfig]:
    """The library's config with `qkv_mode`: "canonical", "shared", "no-key", or any equation."""
    _implemented()
    plain: Any = _plain_model(family, "AutoModel").config_class

    def __post_init__(self: Any, **more: Any) -> None:  # noqa: N807
        plain.__post_init__(self, **more)
        self.qkv_mode = equations(self.qkv_mode)
        plans(self)

    body = {
        "model_type": family.model_type,
        "__annotations__": {"qkv_mode": str | list},
        "qkv_mode": "canonical",
        "__post_init__": __post_init__,
        "__module__": __name__,
        "__doc__": config_class.__doc__,
    }
    made: Any = type(family.config, (plain,), body)
    return made


@cache
def models(family: Family) -> dict[str, type[PreTrainedModel]]:
    """The classes of a family by the Auto class that finds them."""
    made: dict[str, type[PreTrainedModel]] = {}
    body = {"config_class": config_class(family), "__module__": __name__}
    for auto in family.classes:
        one: Any = type(family.named(auto), (Planned, _plain_model(family, auto)), dict(body))
        made[auto] = one
    return made


def _plain_model(family: Family, auto: str) -> type[PreTrainedModel]:
    return getattr(importlib.import_module(family.module), family.classes[auto])


def with_mode(config: PreTrainedConfig, mode: Mode) -> PreTrainedConfig:
    """The config with this `qkv_mode`; ValueError where it cannot be or a setting is not known."""
    family = family_of(config)
    family.check(config)
    settings: dict[str, Any] = config.to_dict() | {"qkv_mode": mode}
    for name in ("model_type", "transformers_version", "architectures", "auto_map"):
        settings.pop(name, None)
    return config_class(family)(**settings)


@cache
def _implemented() -> None:
    """Have the library know our attention function, so that it can be chosen by name."""
    # Both, or it would get no mask, not even that of padding.
    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def __getattr__(name: str) -> Any:
    """A class by its name, for those who import one from here."""
    for family in FAMILIES.values():
        if name == family.config:
            return config_class(family)
        for auto in family.classes:
            if name == family.named(auto):
                return models(family)[auto]
    raise AttributeError(f"There is no class {name} with qkv_mode.")
