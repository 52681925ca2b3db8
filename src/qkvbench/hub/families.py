"""The architectures of transformers that this package knows, and the plan of their attention.

A row of `FAMILIES` takes ``qkv_mode``: it says what the attention class is called, how it is built,
and how every setting of the config is treated. A setting that is in no row is refused by name, so
that none is silently ignored. `LINEAR`, `SHARED_ROOT` and `EXPANDED` are for slim caches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qkvbench.variant import (
    CANONICAL,
    NORM_EPS,
    ROLES,
    ApplyRope,
    CachedTensor,
    Geometry,
    Latent,
    LayerBelow,
    Own,
    Plan,
    Role,
    Rope,
    Same,
    Scores,
    Source,
    UpProject,
    Variant,
    Zeros,
    parse,
    resolve,
    write,
)

# The module of each role's projection, or the one module of all three, and its order.
Projections = Mapping[Role, str] | str
FusedBy = Literal["role", "head"]


# Sources that a model of transformers cannot have, and what they say of K and V.
UNSUPPORTED: dict[type[Source], str] = {
    LayerBelow: "reads K or V of a layer below",
    Zeros: "is a control whose query and key are zeros",
}


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture: its classes, and how attention is built from its config.

    ``output`` is None if the output projection is not part of the class that is replaced.
    ``attention_dropout`` and ``residual_dropout`` are names of settings.
    """

    kind: str
    # The class of transformers for each Auto class.
    classes: Mapping[str, str]
    attention: str
    names: Projections
    output: str | None
    attention_dropout: str
    bias: Callable[[Any], bool]
    output_bias: Callable[[Any], bool]
    # Settings that our attention reads besides `COMMON`; settings that the library's code reads.
    handled: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    # Settings of which only these values are supported.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    residual_dropout: str | None = None
    rotary: bool = False
    normed: tuple[Role, ...] = ()
    transposed: bool = False
    # In a fused module: all of Q, then K, then V; or those of one head, then of the next.
    fused_by: FusedBy = "role"
    # The module of transformers with the classes, if it has not the name of the kind.
    package: str | None = None
    # The settings with the numbers of blocks if there is a decoder that attends to an encoder: its
    # blocks have two layers of attention each. The encoder's layers come first.
    blocks: tuple[str, str] | None = None
    reads_text: bool = True
    # Whether scores are divided by the root of a head's width.
    scaled: bool = True
    # Whether a layer adds a table of relative positions to its scores, and returns it.
    relative: bool = False

    @property
    def model_type(self) -> str:
        """The ``model_type`` of our config."""
        return f"qkv_{self.kind}"

    @property
    def config_name(self) -> str:
        """The name of our config class."""
        return f"Qkv{self.classes['AutoModel'].removesuffix('Model')}Config"

    def layers(self, config: Any) -> int:
        """The number of layers of attention."""
        if self.blocks is None:
            return config.num_hidden_layers
        encoder, decoder = (getattr(config, name) for name in self.blocks)
        return encoder + 2 * decoder

    def class_name(self, auto: str) -> str:
        """The name of our model class for this Auto class."""
        return f"Qkv{self.classes[auto]}"

    @property
    def module(self) -> str:
        """The module of transformers with its classes."""
        package = self.package or self.kind
        return f"transformers.models.{package}.modeling_{package}"

    def plan(
        self,
        variant: Variant,
        geometry: Geometry,
        rope_base: float = 10_000.0,
        norm_eps: float = NORM_EPS,
        rotary_share: float = 1.0,
    ) -> Plan:
        """The plan of a layer of this family. The library's own module scales its frequencies.

        ValueError, with equations that would work, if the head sharing forbids the variant.
        """
        for kind, what in UNSUPPORTED.items():
            if any(isinstance(variant.source(role), kind) for role in ROLES):
                raise ValueError(
                    f"'{write(variant)}' {what}, which qkv_mode does not support; take 'q,k=v' or "
                    "another equation."
                )
        if isinstance(variant.q, Latent):
            raise ValueError(
                f"'{write(variant)}' makes Q from a latent, which qkv_mode does not support: a "
                "cache keeps nothing of Q.\nTake 'q,k=L(64),v=L(64)', whose latent is cached."
            )
        latents = [each for each in (variant.k, variant.v) if isinstance(each, Latent)]
        if any(latent.own or latent.groups > 1 for latent in latents):
            one = Latent(max(latent.rank * latent.groups for latent in latents)).text
            raise ValueError(
                f"'{write(variant)}' has several latents, and qkv_mode caches one.\n"
                f"Take 'q,k={one},v={one}'."
            )
        if not variant.scores.normed:
            variant = replace(variant, scores=replace(variant.scores, normed=self.normed))
        if variant.scores.rope_value and not self.rotary:
            raise ValueError(
                f"'{write(variant)}' rotates V by positions, and a {self.kind} has no RoPE.\n"
                f"Write '{write(replace(variant, scores=Scores()))}'."
            )
        dims = int(geometry.head_dim * rotary_share)
        rope = Rope(rope_base, dims) if self.rotary else None
        try:
            return _resolve(variant, geometry, rope, norm_eps)
        except ValueError as error:
            unshared = replace(variant, kv_heads=geometry.heads)
            if geometry.kv_heads == geometry.heads and variant.kv_heads is None:
                raise
            if not _resolves(unshared, geometry, rope, norm_eps):
                raise
            forbidden = str(error).partition(" Leave out")[0]
            heads = "" if variant.kv_heads is None else f"/{variant.kv_heads}"
            raise ValueError(
                f"{forbidden}\n'{write(Variant(Own(), Own(), Same('k')))}{heads}' would keep these "
                f"key/value heads; '{write(replace(unshared, scores=Scores()))}' makes "
                f"{geometry.heads} of each."
            ) from None

    def scaling(self, config: Any, layer: int) -> float:
        """The factor of the products of queries and keys."""
        scaled = self.scaled and getattr(config, "scale_attn_weights", True)
        by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
        scale = geometry_of(config).head_dim ** -0.5 if scaled else 1.0
        return scale / (layer + 1) if by_layer else scale

    def window(self, config: Any, layer: int) -> int | None:
        """How many positions a layer attends to, its own included; None if to all."""
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def check(self, config: Any) -> None:
        """Refuse unknown settings and unsupported values; ValueError."""
        known = {*_library_settings(), *COMMON, *self.handled, *self.elsewhere, *self.only}
        known.update(_IGNORED.get(self.kind, ()))
        for name, value in config.to_dict().items():
            if name in self.only and value not in self.only[name]:
                allowed = " or ".join(map(repr, self.only[name]))
                raise ValueError(
                    f"qkv_mode does not support {name}={value!r} of a {self.kind} config.\n"
                    f"Only {allowed} is supported; for anything else take the library's own class."
                )
            if name not in known and not name.startswith("_"):
                raise ValueError(
                    f"The {self.kind} config says {name}={value!r}, a setting that qkv_mode does "
                    f"not know and would ignore.\nRemove it from the config if it means nothing "
                    "to this model."
                )
        sides = ("encoder_attention_heads", "decoder_attention_heads")
        heads = [getattr(config, name) for name in sides if hasattr(config, name)]
        if len(set(heads)) > 1:
            raise ValueError(
                f"This {self.kind} has {heads[0]} heads in its encoder and {heads[1]} in its "
                "decoder; qkv_mode supports as many in both."
            )


def _resolve(variant: Variant, geometry: Geometry, rope: Rope | None, norm_eps: float) -> Plan:
    return resolve(variant, geometry, causal=True, rope=rope, norm_eps=norm_eps)


def _resolves(variant: Variant, geometry: Geometry, rope: Rope | None, norm_eps: float) -> bool:
    try:
        _resolve(variant, geometry, rope, norm_eps)
    except ValueError:
        return False
    return True


# Settings that every row handles, our own, and settings of files that change no number.
COMMON = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "initializer_range"),
    *("qkv_mode", "requires", "model_type", "auto_map", "torch_dtype", "output_attentions"),
    *("vocab_size", "use_cache", "tie_word_embeddings", "classifier_dropout", "num_labels"),
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "unk_token_id",
    ),
    *(
        "gradient_checkpointing",
        "task_specific_params",
        "finetuning_task",
        "transformers.js_config",
    ),
    # How a text is chosen, which files of older versions of the library hold, too.
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("temperature", "top_k", "top_p", "typical_p", "length_penalty", "repetition_penalty"),
    *("diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "remove_invalid_values", "prefix"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "output_scores", "return_dict_in_generate"),
    *("tokenizer_class", "torchscript", "tf_legacy_loss", "use_bfloat16"),
)
# Settings of older files that the library's own class ignores, and so does ours.
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("n_special", "predict_special_tokens"),
    "opt": ("activation_dropout",),
    "bert": (
        *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_type"),
        *("pooler_num_fc_layers", "pooler_size_per_head"),
    ),
    "gemma": ("hidden_activation",),
    "marian": (
        *("add_bias_logits", "add_final_layer_norm", "normalize_before", "normalize_embedding"),
        *("static_position_embeddings", "extra_pos_embeddings", "classif_dropout"),
    ),
}
_NAMES: Mapping[Role, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


def _rotary(kind: str, name: str, **row: Any) -> Family:
    """The row of a decoder with RoPE, such as Llama."""
    heads = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
    row = {"bias": _no, "output_bias": _no, "names": _NAMES, "output": "o_proj", **row}
    handled = ("num_key_value_heads", "head_dim", "attention_dropout", "rope_parameters")
    elsewhere = ("rms_norm_eps", "intermediate_size", "hidden_act", "max_position_embeddings")
    return Family(
        kind,
        classes={"AutoModel": f"{name}Model"} | {f"AutoModel{h}": f"{name}{h}" for h in heads},
        attention=f"{name}Attention",
        attention_dropout="attention_dropout",
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


def _clip(tower: str, *elsewhere: str) -> Family:
    """The row of one tower of CLIP; a model of both keeps them under other names."""
    return Family(
        f"clip_{tower.lower()}_model",
        package="clip",
        reads_text=tower == "Text",
        classes={"AutoModel": f"CLIP{tower}Model"},
        attention="CLIPAttention",
        names=_NAMES,
        output="out_proj",
        attention_dropout="attention_dropout",
        bias=_yes,
        output_bias=_yes,
        handled=("attention_dropout",),
        elsewhere=(
            *("intermediate_size", "hidden_act", "layer_norm_eps", "initializer_factor"),
            *("projection_dim", *elsewhere),
        ),
    )


_SLIDING = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

_ROWS = (
    # SmolLM and SmolLM2 have a Llama config.
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
    _rotary(
        "gemma",
        "Gemma",
        bias=_attention_bias,
        output_bias=_attention_bias,
        handled=("attention_bias",),
        only={"use_bidirectional_attention": (False, None)},
    ),
    _rotary(
        "phi",
        "Phi",
        output="dense",
        bias=_yes,
        output_bias=_yes,
        elsewhere=("resid_pdrop", "embd_pdrop", "layer_norm_eps"),
        only={"qk_layernorm": (False,)},
    ),
    _rotary(
        "gpt_neox",
        "GPTNeoX",
        names="query_key_value",
        fused_by="head",
        output="dense",
        bias=_attention_bias,
        output_bias=_attention_bias,
        handled=("attention_bias",),
        elsewhere=("hidden_dropout", "layer_norm_eps", "use_parallel_residual", "is_decoder"),
    ),
    Family(
        "opt",
        classes={
            "AutoModel": "OPTModel",
            "AutoModelForCausalLM": "OPTForCausalLM",
            "AutoModelForSequenceClassification": "OPTForSequenceClassification",
        },
        attention="OPTAttention",
        names=_NAMES,
        output="out_proj",
        attention_dropout="attention_dropout",
        bias=lambda config: config.enable_bias,
        output_bias=lambda config: config.enable_bias,
        handled=("attention_dropout", "enable_bias", "init_std"),
        elsewhere=(
            *("ffn_dim", "max_position_embeddings", "do_layer_norm_before", "dropout"),
            *("word_embed_proj_dim", "activation_function", "layerdrop"),
            *("layer_norm_elementwise_affine", "_remove_final_layer_norm"),
        ),
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
        attention_dropout="attn_pdrop",
        residual_dropout="resid_pdrop",
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
        attention_dropout="attention_probs_dropout_prob",
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
        reads_text=False,
        names=_NAMES,
        output="o_proj",
        attention_dropout="attention_probs_dropout_prob",
        bias=lambda config: config.qkv_bias,
        output_bias=_yes,
        handled=("attention_probs_dropout_prob", "qkv_bias"),
        elsewhere=(
            *("intermediate_size", "hidden_act", "hidden_dropout_prob", "layer_norm_eps"),
            *("image_size", "patch_size", "num_channels", "encoder_stride"),
            *("pooler_output_size", "pooler_act"),
        ),
    ),
    Family(
        "marian",
        classes={"AutoModel": "MarianModel", "AutoModelForSeq2SeqLM": "MarianMTModel"},
        attention="MarianAttention",
        names=_NAMES,
        output="out_proj",
        attention_dropout="attention_dropout",
        bias=_yes,
        output_bias=_yes,
        blocks=("encoder_layers", "decoder_layers"),
        handled=(
            *("attention_dropout", "d_model", "encoder_layers", "decoder_layers", "init_std"),
            *("encoder_attention_heads", "decoder_attention_heads"),
        ),
        elsewhere=(
            *("encoder_ffn_dim", "decoder_ffn_dim", "encoder_layerdrop", "decoder_layerdrop"),
            *("activation_function", "activation_dropout", "dropout", "max_position_embeddings"),
            *("scale_embedding", "decoder_vocab_size", "decoder_start_token_id"),
            *("forced_eos_token_id", "share_encoder_decoder_embeddings", "is_encoder_decoder"),
            "is_decoder",
        ),
    ),
    Family(
        "t5",
        classes={
            "AutoModel": "T5Model",
            "AutoModelForSeq2SeqLM": "T5ForConditionalGeneration",
        },
        attention="T5Attention",
        names={"q": "q", "k": "k", "v": "v"},
        output="o",
        attention_dropout="dropout_rate",
        bias=_no,
        output_bias=_no,
        blocks=("num_layers", "num_decoder_layers"),
        scaled=False,
        relative=True,
        handled=(
            *("d_model", "d_kv", "num_heads", "num_layers", "num_decoder_layers", "dropout_rate"),
            *("relative_attention_num_buckets", "relative_attention_max_distance"),
        ),
        elsewhere=(
            *("d_ff", "layer_norm_epsilon", "initializer_factor", "feed_forward_proj"),
            *("is_encoder_decoder", "is_decoder", "dense_act_fn", "is_gated_act", "n_positions"),
            *("decoder_start_token_id", "scale_decoder_outputs", "output_past"),
        ),
    ),
    _clip("Text", "max_position_embeddings"),
    _clip("Vision", "num_channels", "image_size", "patch_size"),
)
FAMILIES = {family.kind: family for family in _ROWS}


@dataclass(frozen=True)
class LinearAttention:
    """An attention class whose cached K and V are linear maps of its input: no norm and no RoPE.

    With a square W_K a slim cache makes V from K. If it attends to an encoder, under the name
    ``cross`` in its layer, the cache makes both from the encoder's output.
    """

    names: Projections
    # In a fused module: all of Q, then K, then V; or those of one head, then of the next.
    fused_by: FusedBy = "role"
    transposed: bool = False
    # The attribute with the number of heads; those that make K no linear map if they are set.
    heads: str = "num_heads"
    unless: tuple[str, ...] = ()
    cross: str | None = None


_SEPARATE = LinearAttention(_NAMES)
_BART = LinearAttention(_NAMES, cross="encoder_attn")
_T5 = LinearAttention({"q": "q", "k": "k", "v": "v"}, heads="n_heads", cross="EncDecAttention")

# What a slim cache knows: attention classes by how much of their K and V it keeps.
LINEAR: Mapping[str, LinearAttention] = {
    "GPT2Attention": LinearAttention("c_attn", transposed=True),
    "OPTAttention": _SEPARATE,
    "GPTNeoSelfAttention": _SEPARATE,
    "XGLMAttention": _SEPARATE,
    "BioGptAttention": _SEPARATE,
    "BloomAttention": LinearAttention("query_key_value", fused_by="head"),
    "MptAttention": LinearAttention("Wqkv", heads="n_heads", unless=("clip_qkv",)),
    "BartAttention": _BART,
    "BlenderbotAttention": _BART,
    "BlenderbotSmallAttention": _BART,
    "M2M100Attention": _BART,
    "MBartAttention": _BART,
    "MarianAttention": _BART,
    "PegasusAttention": _BART,
    "WhisperAttention": _BART,
    "T5Attention": _T5,
    "MT5Attention": _T5,
}
# K and V are one projection, and K its V scaled and rotated, where there is no ``v_proj``.
SHARED_ROOT = (
    "Gemma4TextAttention",
    "Gemma4UnifiedTextAttention",
    "DiffusionGemmaEncoderTextAttention",
)
# The library copies each K/V head for its query heads before it caches them: how many copies.
EXPANDED: Mapping[str, Callable[[Any], int]] = {
    "FalconAttention": lambda attention: (
        attention.num_heads // attention.num_kv_heads if attention.new_decoder_architecture else 1
    )
}
# Why there is no slim cache for a class to which the general reason does not apply.
NOT_SLIM: Mapping[str, str] = {
    "DeepseekV4Attention": "its K is its V, and the library keeps that one tensor already, except "
    "in layers of the kind sliding_attention, which keep it twice within their window",
}
# Encoders have no cache; `conditions` reports on their weights.
ENCODERS: Mapping[str, LinearAttention] = {
    "BertSelfAttention": LinearAttention(FAMILIES["bert"].names, heads="num_attention_heads")
}


def family_of(config: Any) -> Family:
    """The row of a config, ours or the library's own; ValueError if there is none."""
    kind = config.model_type.removeprefix("qkv_")
    if kind not in FAMILIES:
        raise ValueError(
            f"qkv_mode is built for {', '.join(FAMILIES)}, not for {config.model_type}.\n"
            "SmolLM is a llama; an architecture is one row of qkvbench/hub/families.py."
        )
    return FAMILIES[kind]


def geometry_of(config: Any) -> Geometry:
    """The sizes of one layer's attention."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Geometry(config.hidden_size, heads, kv_heads, head_dim)


def rope_base_of(config: Any) -> float:
    """The base of the rotary frequencies."""
    return (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)


def rotary_share_of(config: Any) -> float:
    """The share of a head's numbers that RoPE rotates."""
    return (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)


def norm_eps_of(config: Any) -> float:
    """The number that the norms of heads add to a mean square."""
    return getattr(config, "rms_norm_eps", NORM_EPS)


def rope_on_read(plan: Plan) -> bool:
    """Whether RoPE is applied to cached rows when they are read, so that positions are cached."""
    return ApplyRope() in plan.key_ops_on_read


def key_only_plan(geometry: Geometry) -> Plan:
    """The plan of a `q,k,v` layer that caches K alone, arXiv:2503.05840.

    With a square W_K, V is a linear map of all heads of K, which the output absorbs: the cached
    row is one head as wide as the model, and V's map is an up-projection from it.
    """
    plan = resolve(CANONICAL, geometry, causal=True)
    assert geometry.kv_heads * geometry.head_dim == geometry.d_model, "W_K is square"
    cached = CachedTensor("k", 1, geometry.d_model, plan.derivations["k"])
    made = UpProject("v", geometry.kv_heads, geometry.head_dim)
    return replace(plan, cached=(cached,), absorbed_by_output=(made,))


def shared_root_plan(attention: Any) -> Plan:
    """The plan of a Gemma 4 layer with ``attention_k_eq_v``: K and V share a root.

    V is the normed root; K is V scaled and rotated, which the plan does on read.
    """
    size, heads = attention.config, attention.config.num_attention_heads
    kv_heads = heads // attention.num_key_value_groups
    geometry = Geometry(size.hidden_size, heads, kv_heads, attention.head_dim)
    rope = Rope(rope_base_of(size), geometry.head_dim)
    return resolve(parse("q,k=v+qkvnorm"), geometry, causal=True, rope=rope)


def check_mode_is_used(settings: Mapping[str, Any]) -> None:
    """Refuse a plain config of the library with ``qkv_mode``, which the library ignores.

    ValueError says what to use instead.
    """
    kind = str(settings.get("model_type"))
    if "qkv_mode" in settings and kind not in {each.model_type for each in FAMILIES.values()}:
        mode = settings["qkv_mode"]
        if kind not in FAMILIES:
            raise ValueError(
                f"A {kind[:40]!r} model does not heed qkv_mode={mode!r}, so it would be 'q,k,v'.\n"
                f"qkv_mode is built for {', '.join(FAMILIES)}. Take it out of config.json."
            )
        raise ValueError(
            f"A {kind} model does not heed qkv_mode={mode!r}, so it would be "
            "'q,k,v'.\nTake qkvbench.hub.with_mode(config, mode), or "
            f"AutoConfig.for_model('{FAMILIES[kind].model_type}', qkv_mode=...) after "
            "qkvbench.hub.register(); for weights that satisfy a tie, "
            "qkvbench.hub.convert(model, mode)."
        )


def _library_settings() -> set[str]:
    """The settings that every config of the library may have, which its own code reads."""
    from transformers import PreTrainedConfig

    return set(PreTrainedConfig().to_dict())
