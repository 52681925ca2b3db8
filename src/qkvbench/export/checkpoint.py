"""A checkpoint of the Llama family as our own decoder: a model, and its weights by our names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkvbench.backends import torch as backend
from qkvbench.hub.attention import QkvModeAttention
from qkvbench.hub.conversion import convert
from qkvbench.hub.families import family_of, geometry_of, rope_base_of, rotary_share_of
from qkvbench.hub.models import attention_layers, layer_plans
from qkvbench.hub.safety import check_folder, load, printable
from qkvbench.model import Attention, Block, Decoder, Init, Model, Rotary
from qkvbench.model.parts import RMSNorm, SwiGLU

# Families whose models are RMSNorm, RoPE and SwiGLU around attention, with Llama's names.
KINDS = ("llama", "mistral", "qwen2", "qwen3")
# Settings of which our decoder has only these values.
ONLY: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
}


def read(folder: Path) -> backend.Decoder:
    """The decoder in a folder of transformers, plain or with a `qkv_mode`, in fp32.

    ValueError says why it is not one that our decoder computes.
    """
    kind = str(check_folder(folder).settings.get("model_type")).removeprefix("qkv_")
    if kind not in KINDS:
        raise ValueError(
            f"{printable(folder.name)} is a {printable(kind)}; checkpoints that are exported are "
            f"of the Llama family: {', '.join(KINDS)}."
        )
    theirs: Any = load(folder, dtype=torch.float32)
    if not hasattr(theirs.config, "qkv_mode"):
        theirs = convert(theirs, "canonical")
    model = model_of(theirs.config, printable(folder.resolve().name))
    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    backend.load(network, _weights(theirs))
    return network.eval()


def model_of(config: Any, name: str) -> Model:
    """The model of a config; ValueError if it is another function than our decoder's."""
    family = family_of(config)
    for setting, values in ONLY.items():
        if (value := getattr(config, setting, None)) not in values:
            raise ValueError(
                f"{name} has {setting}={printable(value)}, and our decoder has {values[0]} alone."
            )
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaling != "default":
        raise ValueError(
            f"{name} has rope_type={printable(scaling)}, and only 'default' is exported."
        )
    windows = {family.window(config, layer) for layer in range(family.layers(config))}
    if windows != {None}:
        raise ValueError(
            f"{name} has layers with sliding windows, which are not exported; "
            "sliding_window=null in config.json is the same for shorter texts."
        )
    plans = layer_plans(config)
    blocks = tuple(
        Block(
            Attention(plan.variant),
            SwiGLU(config.intermediate_size, "swiglu"),
            RMSNorm("rms", eps=config.rms_norm_eps),
        )
        for plan in plans
    )
    model = Model(
        name,
        geometry_of(config),
        blocks,
        Rotary(rope_base_of(config), rotary_share_of(config)),
        Decoder(config.vocab_size, tied=config.tie_word_embeddings),
        Init(embedding_std=config.initializer_range, position_std=config.initializer_range),
    )
    # Whatever else a config may say of attention is in the plan.
    for number, (own, plan) in enumerate(zip(model.plans, plans, strict=True)):
        if own != plan:
            raise ValueError(
                f"{name}: the attention of layer {number} has settings that our decoder lacks, "
                f"such as an eps of head norms of {config.rms_norm_eps}."
            )
    return model


def _weights(theirs: Any) -> dict[str, Tensor]:
    """The weights of a model with `qkv_mode` under the names that all backends share."""
    body = theirs.model
    found = {"embedding.table": body.embed_tokens.weight, "norm.weight": body.norm.weight}
    if not theirs.config.tie_word_embeddings:
        found["output.weight"] = theirs.lm_head.weight
    layers = [attention for _, attention in attention_layers(theirs)]
    for number, (block, attention) in enumerate(zip(body.layers, layers, strict=True)):
        at = f"blocks.{number}"
        found[f"{at}.attention_norm.weight"] = block.input_layernorm.weight
        found[f"{at}.feed_forward_norm.weight"] = block.post_attention_layernorm.weight
        for name in ("gate", "up", "down"):
            matrix = block.mlp.get_submodule(f"{name}_proj")
            found[f"{at}.feed_forward.{name}.weight"] = matrix.weight
        own = _attention(attention).items()
        found |= {f"{at}.attention.{name}": tensor for name, tensor in own}
    return found


def _attention(layer: QkvModeAttention) -> dict[str, Tensor]:
    """The weights of one layer; a bias that the checkpoint has not is zeros."""
    found: dict[str, Tensor] = {}
    assert layer.family.output, "all of these families have an output projection"
    names = {matrix: name for name, (matrix,) in layer.projections.items()}
    for matrix, name in (names | {"o": layer.family.output}).items():
        linear: Any = layer.get_submodule(name)
        found[f"{matrix}.weight"] = linear.weight
        found[f"{matrix}.bias"] = (
            linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
        )
    for kind in ("rotation", "up", "map"):
        maps = getattr(layer, kind).items()
        found |= {f"{role}.{kind}": numbers for role, numbers in maps}
    return found | {f"{role}.scale": layer.scale(role) for role in layer.plan.scaled_roles}
