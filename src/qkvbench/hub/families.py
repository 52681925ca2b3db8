"""The architectures of transformers that take ``qkv_mode``, one row each.

A row says what a layer's attention is called, how it is built, and what becomes of every setting
of the config. A setting that no row knows is refused by name, so that none is passed over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qkvbench.variant.plan import Geometry
from qkvbench.variant.rope import Rope
from qkvbench.variant.scores import Role


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture: its classes, and how attention is built from its config.

    ``names`` are the linear maps of Q, K and V, or the one of all three; ``output`` is None where
    it lies outside of the class that is replaced. ``dropout`` and ``dropped`` are settings: of
    attention weights, and of what is added to the stream.
    """

    kind: str
    # The class of transformers by the Auto class that finds it.
    classes: Mapping[str, str]
    attention: str
    names: Mapping[Role, str] | str
    output: str | None
    dropout: str
    bias: Callable[[Any], bool]
    output_bias: Callable[[Any], bool]
    # Handled by attention, besides what every row handles; and used by the library's own code.
    handled: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    # Settings for which only these values are built.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dropped: str | None = None
    rotary: bool = False
    normed: tuple[Role, ...] = ()
    transposed: bool = False

    def rope(self, config: Any) -> Rope | None:
        """The RoPE settings of a config; scaled frequencies are the library's own module's."""
        if not self.rotary:
            return None
        settings = getattr(config, "rope_parameters", None) or {}
        return Rope(settings.get("rope_theta", 10_000.0), self.geometry(config).head_dim)

    @property
    def model_type(self) -> str:
        """What a config of ours is called."""
        return f"qkv_{self.kind}"

    @property
    def config(self) -> str:
        """The class of such a config."""
        return f"Qkv{self.classes['AutoModel'].removesuffix('Model')}Config"

    def named(self, auto: str) -> str:
        """The class of ours that this Auto class finds."""
        return f"Qkv{self.classes[auto]}"

    @property
    def module(self) -> str:
        """Where transformers has its classes."""
        return f"transformers.models.{self.kind}.modeling_{self.kind}"

    def geometry(self, config: Any) -> Geometry:
        """The sizes of one layer's attention."""
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return Geometry(config.hidden_size, heads, kv_heads, head_dim)

    def scaling(self, config: Any, layer: int) -> float:
        """By what the products of queries and keys are multiplied."""
        scaled = getattr(config, "scale_attn_weights", True)
        by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
        scale = self.geometry(config).head_dim ** -0.5 if scaled else 1.0
        return scale / (layer + 1) if by_layer else scale

    def window(self, config: Any, layer: int) -> int | None:
        """How many places a layer sees, itself included; None where it sees all."""
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def check(self, config: Any) -> None:
        """Refuse settings that are not known here, and values that are not built; ValueError."""
        known = {*_library_settings(), *COMMON, *self.handled, *self.elsewhere, *self.only}
        for name, value in config.to_dict().items():
            if name in self.only and value not in self.only[name]:
                allowed = " or ".join(map(repr, self.only[name]))
                raise ValueError(
                    f"qkv_mode is not built for {name}={value!r} of a {self.kind} config.\n"
                    f"Only {allowed} is; take the library's own classes for anything else."
                )
            if name not in known and not name.startswith("_"):
                raise ValueError(
                    f"The {self.kind} config says {name}={value!r}, a setting that qkv_mode does "
                    f"not know, so nothing would heed it.\nTake it out of the config if it means "
                    "nothing to this model."
                )


# Settings that every row handles, those of ours, and what files say that changes no number.
COMMON = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "initializer_range"),
    *("qkv_mode", "model_type", "auto_map", "torch_dtype", "output_attentions"),
    *("vocab_size", "use_cache", "tie_word_embeddings", "classifier_dropout", "num_labels"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
    *("gradient_checkpointing", "task_specific_params", "finetuning_task"),
    "transformers.js_config",
)
_NAMES: Mapping[Role, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


def _rotary(kind: str, name: str, **row: Any) -> Family:
    """The row of a decoder with rotary positions, as Llama is."""
    heads = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
    row = {"bias": _no, "output_bias": _no, **row}
    handled = ("num_key_value_heads", "head_dim", "attention_dropout", "rope_parameters")
    elsewhere = ("rms_norm_eps", "intermediate_size", "hidden_act", "max_position_embeddings")
    return Family(
        kind,
        classes={"AutoModel": f"{name}Model"} | {f"AutoModel{h}": f"{name}{h}" for h in heads},
        attention=f"{name}Attention",
        names=_NAMES,
        output="o_proj",
        dropout="attention_dropout",
        rotary=True,
        handled=(*handled, *row.pop("handled", ())),
        elsewhere=(*elsewhere, *row.pop("elsewhere", ())),
        **row,
    )


def _no(config: Any) -> bool:
    return False


def _yes(config: Any) -> bool:
    return True


def _attention_bias(config: Any) -> bool:
    return config.attention_bias


_SLIDING = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

_ROWS = (
    # SmolLM and SmolLM2 are Llamas, whose configs say so themselves.
    _rotary(
        "llama",
        "Llama",
        bias=_attention_bias,
        output_bias=_attention_bias,
        handled=("attention_bias",),
        elsewhere=("mlp_bias",),
        only={
            "pretraining_tp": (1, None),
            "rope_interleaved": (False,),
            "is_llama_config": (True,),
        },
    ),
    _rotary("mistral", "Mistral", handled=("sliding_window",)),
    _rotary("qwen2", "Qwen2", bias=_yes, handled=_SLIDING, only={"use_mrope": (False,)}),
    _rotary(
        "qwen3",
        "Qwen3",
        bias=_attention_bias,
        output_bias=_attention_bias,
        normed=("q", "k"),
        handled=("attention_bias", *_SLIDING),
    ),
    Family(
        "gpt2",
        classes={
            "AutoModel": "GPT2Model",
            "AutoModelForCausalLM": "GPT2LMHeadModel",
            "AutoModelForSequenceClassification": "GPT2ForSequenceClassification",
            "AutoModelForTokenClassification": "GPT2ForTokenClassification",
        },
        attention="GPT2Attention",
        names="c_attn",
        output="c_proj",
        dropout="attn_pdrop",
        dropped="resid_pdrop",
        bias=_yes,
        output_bias=_yes,
        transposed=True,
        handled=(
            *("n_embd", "n_head", "n_layer", "attn_pdrop", "resid_pdrop"),
            *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        ),
        elsewhere=(
            *("n_positions", "n_inner", "activation_function", "embd_pdrop", "layer_norm_epsilon"),
            *("n_ctx", "summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
        ),
        only={"reorder_and_upcast_attn": (False,), "add_cross_attention": (False,)},
    ),
    Family(
        "bert",
        classes={
            "AutoModel": "BertModel",
            "AutoModelForCausalLM": "BertLMHeadModel",
            "AutoModelForMaskedLM": "BertForMaskedLM",
            "AutoModelForSequenceClassification": "BertForSequenceClassification",
            "AutoModelForTokenClassification": "BertForTokenClassification",
            "AutoModelForQuestionAnswering": "BertForQuestionAnswering",
        },
        attention="BertSelfAttention",
        names={"q": "query", "k": "key", "v": "value"},
        output=None,
        dropout="attention_probs_dropout_prob",
        bias=_yes,
        output_bias=_yes,
        handled=("attention_probs_dropout_prob", "is_decoder"),
        elsewhere=(
            *("intermediate_size", "hidden_act", "hidden_dropout_prob", "layer_norm_eps"),
            *("max_position_embeddings", "type_vocab_size"),
        ),
        only={"add_cross_attention": (False,), "position_embedding_type": ("absolute",)},
    ),
    Family(
        "vit",
        classes={
            "AutoModel": "ViTModel",
            "AutoModelForImageClassification": "ViTForImageClassification",
        },
        attention="ViTAttention",
        names=_NAMES,
        output="o_proj",
        dropout="attention_probs_dropout_prob",
        bias=lambda config: config.qkv_bias,
        output_bias=_yes,
        handled=("attention_probs_dropout_prob", "qkv_bias"),
        elsewhere=(
            *("intermediate_size", "hidden_act", "hidden_dropout_prob", "layer_norm_eps"),
            *("image_size", "patch_size", "num_channels", "encoder_stride"),
            *("pooler_output_size", "pooler_act"),
        ),
    ),
)
FAMILIES = {family.kind: family for family in _ROWS}


def family_of(config: Any) -> Family:
    """The row of a config, ours or the library's own; ValueError where there is none."""
    kind = config.model_type.removeprefix("qkv_")
    if kind not in FAMILIES:
        raise ValueError(
            f"qkv_mode is built for {', '.join(FAMILIES)}, not for {config.model_type}.\n"
            "SmolLM is a llama; an architecture is one row of qkvbench/hub/families.py."
        )
    return FAMILIES[kind]


def _library_settings() -> set[str]:
    """The settings that every config of the library may have, which its own code reads."""
    from transformers import PreTrainedConfig

    return set(PreTrainedConfig().to_dict())
