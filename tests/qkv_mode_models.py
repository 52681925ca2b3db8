"""Tiny models of each architecture that takes `qkv_mode`, with weights that satisfy a tie."""

import torch
import transformers

from qkvbench import hub
from qkvbench.backends.torch.attention import ops
from qkvbench.hub.families import FAMILIES, geometry_of
from qkvbench.hub.modes import variants
from qkvbench.variant import ROLES, LearnedMap, Own, Same

hub.register()

VOCABULARY, LAYERS, HEADS, D_MODEL = 29, 2, 4, 48
_SIZES = {
    "hidden_size": D_MODEL,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
_TEXT = {**_SIZES, "vocab_size": VOCABULARY, "pad_token_id": 0}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
SETTINGS = {
    "llama": {**_TEXT, **_ENDS, "num_key_value_heads": HEADS},
    "mistral": {**_TEXT, **_ENDS, "num_key_value_heads": HEADS, "sliding_window": 5},
    "qwen2": {**_TEXT, **_ENDS, "num_key_value_heads": HEADS},
    "qwen3": {**_TEXT, **_ENDS, "num_key_value_heads": HEADS, "head_dim": 16},
    "gpt2": {
        "n_embd": D_MODEL,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": 40,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        **_ENDS,
    },
    "gemma": {**_TEXT, **_ENDS, "num_key_value_heads": HEADS, "head_dim": 16},
    # RoPE on the first half of a head, and on its first third.
    "phi": {**_TEXT, **_ENDS},
    "gpt_neox": {
        **_TEXT,
        **_ENDS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 4 * HEADS / D_MODEL,
        },
    },
    "opt": {
        "hidden_size": D_MODEL,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": 56,
        "vocab_size": VOCABULARY,
        "word_embed_proj_dim": D_MODEL,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        **_ENDS,
    },
    "bert": {**_TEXT, "max_position_embeddings": 40},
    "marian": {
        "d_model": D_MODEL,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 56,
        "decoder_ffn_dim": 56,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 0,
    },
    "t5": {
        "d_model": D_MODEL,
        "d_kv": 16,
        "d_ff": 56,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": HEADS,
        "vocab_size": VOCABULARY,
        "relative_attention_num_buckets": 8,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    },
    "vit": {**_SIZES, "image_size": 8, "patch_size": 4, "num_labels": 3},
    "clip_text_model": {**_TEXT, **_ENDS, "max_position_embeddings": 40},
    "clip_vision_model": {**_SIZES, "image_size": 8, "patch_size": 4},
}
DECODERS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt_neox", "opt", "gpt2"]
PICTURES = ("vit", "clip_vision_model")
HEAD = dict.fromkeys(DECODERS, "AutoModelForCausalLM") | {
    "bert": "AutoModelForMaskedLM",
    "marian": "AutoModelForSeq2SeqLM",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "AutoModelForImageClassification",
    "clip_text_model": "AutoModel",
    "clip_vision_model": "AutoModel",
}


def config_of(kind, **more):
    """A config of the library's own, or of ours if `more` has a mode."""
    model_type = f"qkv_{kind}" if "qkv_mode" in more else kind
    return transformers.AutoConfig.for_model(model_type, **(SETTINGS[kind] | more))


def model_of(kind, seed=0, **more):
    """A model in evaluation mode, each of whose learned parameters changes its output."""
    torch.manual_seed(seed)
    model = getattr(transformers, HEAD[kind]).from_config(config_of(kind, **more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                # Marian's sines of positions, which the library makes anew and never saves.
                continue
            # Gemma's norms add one.
            norm = "norm" in name.lower() and name.endswith("weight") and kind != "gemma"
            around = 1.0 if norm else 0.0
            parameter.normal_(around, 0.25)
    return model.eval()


def outputs_of(model, **inputs):
    """The logits of a model, or the last hidden states of one without a head."""
    with torch.no_grad():
        outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def inputs_of(kind, batch=3, time=9, seed=5):
    """A batch of tokens, or of images."""
    rng = torch.Generator().manual_seed(seed)
    if kind in PICTURES:
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=rng)}
    tokens = {"input_ids": torch.randint(3, VOCABULARY, (batch, time), generator=rng)}
    if FAMILIES[kind].blocks:
        # A target of another length than the source.
        target = torch.randint(3, VOCABULARY, (batch, time - 2), generator=rng)
        tokens["decoder_input_ids"] = target
    return tokens


def repeated(kind, mode):
    """A list of modes, again and again up to as many as there are layers of attention."""
    layers = FAMILIES[kind].layers(config_of(kind))
    return mode if isinstance(mode, str) else [mode[n % len(mode)] for n in range(layers)]


@torch.no_grad()
def tie(model, mode):  # noqa: C901 - one case for each source
    """Give a model of the library's own weights that satisfy the ties of `mode`."""
    family = FAMILIES[model.config.model_type]
    size = geometry_of(model.config)
    rng = torch.Generator().manual_seed(11)
    layers = [m for m in model.modules() if type(m).__name__ == family.attention]
    for layer, variant in zip(
        layers, variants(repeated(model.config.model_type, mode), len(layers)), strict=True
    ):
        plan = family.plan(variant, size)
        parts = _parts(layer, family, size)
        for role in ROLES:
            match plan.variant.source(role):
                case Own():
                    pass
                case Same(origin):
                    for one, other in zip(parts[role], parts[origin], strict=True):
                        one.copy_(other)
                case LearnedMap(origin, "free"):
                    shape = (plan.heads(role), size.head_dim, size.head_dim)
                    matrix = torch.randn(shape, generator=rng).double() / size.head_dim**0.5
                    for one, other in zip(parts[role], parts[origin], strict=True):
                        rows = other.double().reshape(len(matrix), size.head_dim, -1)
                        one.copy_((matrix @ rows).reshape(one.shape))
                case LearnedMap(origin):
                    pairs = size.head_dim * (size.head_dim - 1) // 2
                    numbers = torch.randn(plan.heads(role), pairs, generator=rng)
                    rotation = ops.rotation(numbers.double() / 4, size.head_dim)
                    for one, other in zip(parts[role], parts[origin], strict=True):
                        rows = other.double().reshape(len(rotation), size.head_dim, -1)
                        one.copy_((rotation @ rows).reshape(one.shape))
        if family.normed and plan.scaled_roles == ("q",):
            layer.k_norm.weight.copy_(layer.q_norm.weight)
    return model


def _parts(layer, family, size):
    """Views of each role's weights, and biases if there are any."""
    if isinstance(family.names, str):
        fused = getattr(layer, family.names)
        if family.fused_by == "head":
            views = [
                part.unflatten(0, (-1, 3, size.head_dim)) for part in (fused.weight, fused.bias)
            ]
            return {role: [view[:, n] for view in views] for n, role in enumerate(ROLES)}
        width = size.heads * size.head_dim
        columns = fused.weight.T.split(width)
        return dict(zip(ROLES, zip(columns, fused.bias.split(width), strict=True), strict=True))
    maps = {role: getattr(layer, name) for role, name in family.names.items()}
    return {
        role: [part for part in (one.weight, one.bias) if part is not None]
        for role, one in maps.items()
    }
