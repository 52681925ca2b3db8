"""Models of transformers with ``qkv_mode`` in their config, made from the table of families.

Each is the library's own class whose attention is replaced after it was built; everything else
(embeddings, norms, masks, heads, losses, generation) is the library's.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.masking_utils import eager_mask

from qkvbench.hub.attention import (
    IMPLEMENTATION,
    QkvModeAttention,
    RelativeAttention,
    attention_forward,
)
from qkvbench.hub.code import write_card, write_code
from qkvbench.hub.families import (
    FAMILIES,
    Family,
    family_of,
    geometry_of,
    norm_eps_of,
    rope_base_of,
    rope_on_read,
    rotary_share_of,
)
from qkvbench.hub.modes import Mode, equations, variants
from qkvbench.variant import Plan

# Kinds of RoPE whose frequencies do not depend on the length of the sequence.
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
# In every saved config, for a reader whose transformers does not know its model type.
REQUIRES = "qkvbench (pip install qkv-ablation-bench); qkvbench.hub.load reads this folder"


def register() -> None:
    """Make the model types with ``qkv_mode`` known to the Auto classes of transformers."""
    for family in FAMILIES.values():
        config = config_class(family)
        AutoConfig.register(family.model_type, config, exist_ok=True)
        for auto, model in model_classes(family).items():
            getattr(transformers, auto).register(config, model, exist_ok=True)
            # The library's names of older files, such as those of GPT-NeoX's head.
            if mapping := get_checkpoint_conversion_mapping(family.classes[auto]):
                register_checkpoint_conversion_mapping(
                    family.class_name(auto), mapping, overwrite=True
                )


def with_mode(config: PreTrainedConfig, mode: Mode) -> PreTrainedConfig:
    """The config with this `qkv_mode`; ValueError if it cannot be or a setting is unknown."""
    register()
    family = family_of(config)
    family.check(config)
    settings: dict[str, Any] = config.to_dict() | {"qkv_mode": mode}
    for name in ("model_type", "transformers_version", "architectures", "auto_map"):
        settings.pop(name, None)
    return config_class(family)(**settings)


def layer_plans(config: PreTrainedConfig) -> tuple[Plan, ...]:
    """The plan of each layer; ValueError, with what to write instead, if there is none."""
    family = family_of(config)
    family.check(config)
    mode = getattr(config, "qkv_mode", "canonical")
    plans = tuple(
        family.plan(
            variant,
            geometry_of(config),
            rope_base_of(config),
            norm_eps_of(config),
            rotary_share_of(config),
        )
        for variant in variants(mode, family.layers(config))
    )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in FIXED_ROPE_TYPES and any(map(rope_on_read, plans)):
        raise ValueError(
            f"rope_type={rope!r} rotates a token by the length of the sequence, and qkv_mode "
            f"{mode!r} caches one root to which RoPE is applied on read.\n"
            f"Take one of {', '.join(FIXED_ROPE_TYPES)}, or a mode whose K and V have different "
            "roots."
        )
    return plans


class QkvModeMixin:
    """The part of our model classes that is ours; the library's class comes after it."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        """The library's model with the attention of its plans."""
        # First, so that an impossible mode is refused before a model is built.
        plans = layer_plans(config)
        library: Any = super()
        library.__init__(config, *args, **kwargs)
        _replace_attention(self, config, plans)

    def _init_weights(self, module: Any) -> None:
        """As in the library, which may expect all projections of its own attention by name."""
        library: Any = super()
        absent = module.absent_projections if isinstance(module, QkvModeAttention) else ()
        for name in absent:
            module.add_module(name, nn.Linear(1, 1))
        library._init_weights(module)
        for name in absent:
            delattr(module, name)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in the library, but a checkpoint with other attention weights is refused."""
        with_info = kwargs.pop("output_loading_info", False)
        library: Any = super()
        model, info = library.from_pretrained(*args, output_loading_info=True, **kwargs)
        prefixes = tuple(f"{name}." for name, _ in attention_layers(model))
        wrong = {
            name
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            for name in (key if isinstance(key, str) else key[0] for key in info[kind])
            if any(prefix in f".{name}" for prefix in prefixes)
        }
        if wrong:
            raise ValueError(
                f"The checkpoint's attention is not that of qkv_mode {model.config.qkv_mode!r}: "
                f"{min(wrong)} is in only one of them.\nqkvbench.hub.convert(model, mode) makes "
                "a checkpoint of the library's one of this mode, if its weights allow it."
            )
        return (model, info) if with_info else model

    def save_pretrained(
        self, save_directory: Any, *args: Any, with_code: bool = False, **kwargs: Any
    ) -> Any:
        """As in the library; `with_code` adds the code that a machine without qkvbench needs.

        Loading it there takes trust_remote_code=True.
        """
        if with_code and kwargs.get("push_to_hub"):
            raise ValueError(
                "push_to_hub uploads before the code is written: save with with_code=True alone, "
                "then upload the folder."
            )
        library: Any = super()
        saved = library.save_pretrained(save_directory, *args, **kwargs)
        model: Any = self
        family, folder = family_of(model.config), Path(save_directory)
        write_card(folder, family.model_type, model.config.qkv_mode, with_code=with_code)
        if with_code:
            write_code_of(family, folder)
        return saved

    def init_continuous_batching(self, *_: Any, **__: Any) -> Any:
        """Refuse: its cache keeps pages of K and V, and plans have other tensors."""
        raise ValueError(
            "Models with qkv_mode do not support continuous batching (generate_batch).\n"
            "Call generate, which takes batches, too."
        )


def write_code_of(family: Family, folder: Path) -> None:
    """Add the code of a family's models to a saved folder, and name it in the config."""
    names = {auto: family.class_name(auto) for auto in family.classes}
    write_code(folder, {"AutoConfig": family.config_name, **names})


def _replace_attention(model: Any, config: PreTrainedConfig, plans: tuple[Plan, ...]) -> None:
    """Replace each attention module of the library by one of its layer's plan."""
    family = family_of(config)
    library = getattr(importlib.import_module(family.module), family.attention)
    # None are left in a head whose body was built by AutoModel: the body has replaced its own.
    names = [name for name, module in model.named_modules() if type(module) is library]
    rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    for layer, (name, plan) in enumerate(zip(names, plans, strict=False)):
        parent, _, attribute = name.rpartition(".")
        replaced = model.get_submodule(name)
        attention = _attention_class(library)(plan, family, config, layer, replaced)
        attention.rotary_emb = tuple(rotary[:1])
        weight = next(replaced.parameters())
        attention.to(dtype=weight.dtype, device=weight.device).train(replaced.training)
        setattr(model.get_submodule(parent), attribute, attention)
        attention.apply(model._init_weights)
        attention.init_maps()


def attention_layers(model: Any) -> list[tuple[str, QkvModeAttention]]:
    """The attention modules of ours with their names, in order."""
    return [(n, part) for n, part in model.named_modules() if isinstance(part, QkvModeAttention)]


@cache
def _attention_class(library: type) -> type[QkvModeAttention]:
    """Our attention as a subclass of the library's class, which the library looks for.

    It does so to collect attention weights and to initialize parameters.
    """
    relative = hasattr(library, "compute_bias")
    own = RelativeAttention if relative else QkvModeAttention
    made: Any = type(f"Qkv{library.__name__}", (own, library), {"__module__": __name__})
    return made


@cache
def config_class(family: Family) -> type[PreTrainedConfig]:
    """The library's config with `qkv_mode`: "canonical", "shared", "no-key", or any equation."""
    # Both, or the library would pass no mask, not even that of padding.
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    plain: Any = _library_class(family, "AutoModel").config_class

    def __post_init__(self: Any, **kwargs: Any) -> None:  # noqa: N807
        plain.__post_init__(self, **kwargs)
        self.qkv_mode = equations(self.qkv_mode)
        self.requires = REQUIRES
        layer_plans(self)

    body = {
        "model_type": family.model_type,
        "__annotations__": {"qkv_mode": str | list},
        "qkv_mode": "canonical",
        "__post_init__": __post_init__,
        "__module__": __name__,
        "__doc__": config_class.__doc__,
    }
    made: Any = type(family.config_name, (plain,), body)
    return made


@cache
def model_classes(family: Family) -> dict[str, type[PreTrainedModel]]:
    """Our classes of a family for each Auto class."""
    body = {"config_class": config_class(family), "__module__": __name__}
    made: dict[str, Any] = {
        auto: type(
            family.class_name(auto), (QkvModeMixin, _library_class(family, auto)), dict(body)
        )
        for auto in family.classes
    }
    return made


def _library_class(family: Family, auto: str) -> type[PreTrainedModel]:
    return getattr(importlib.import_module(family.module), family.classes[auto])


def __getattr__(name: str) -> Any:
    """One of our classes by its name: for imports, pickles and code in a checkpoint's folder."""
    for family in FAMILIES.values():
        if name == family.config_name:
            return config_class(family)
        if name == f"Qkv{family.attention}":
            return _attention_class(
                getattr(importlib.import_module(family.module), family.attention)
            )
        for auto in family.classes:
            if name == family.class_name(auto):
                return model_classes(family)[auto]
    raise AttributeError(f"There is no class {name} with qkv_mode.")
