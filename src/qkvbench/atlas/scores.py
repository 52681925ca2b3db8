"""The scores are more than a product under a causal mask: biases, caps, sinks, chunks."""

from dataclasses import replace

from qkvbench.atlas.kit.form import Form, Kept, Layer
from qkvbench.atlas.kit.sizes import rope, sizes, small
from qkvbench.atlas.kit.weights import (
    AnyWeight,
    ByGroup,
    ScoreScale,
    Stacked,
    Times,
    Weight,
    separate,
)
from qkvbench.model import Alibi, Rotary

NARROW = (Kept("K", "kv_heads", "head_dim"), Kept("V", "kv_heads", "value_dim"))
_SINK: dict[str, AnyWeight] = {"correction.sink": Weight("sinks")}
_SCALES: dict[str, AnyWeight] = {
    "q.scale": Weight("q_norm.weight"),
    "k.scale": Weight("k_norm.weight"),
}
_GPT_OSS_FULL = Layer(
    model="gpt_oss",
    attention="GptOssAttention",
    network="GptOssModel",
    at="layers.0.self_attn",
    config=small(
        head_dim=14,
        sliding_window=5,
        num_local_experts=2,
        num_experts_per_tok=1,
        rope_parameters=rope(),
        layer_types=["full_attention", "sliding_attention"],
    ),
    own=sizes(2880, 64, 8, 64),
    weights={**separate(), **_SINK},
)
_FLINT = small(
    head_dim=14,
    sliding_window=5,
    rope_parameters=rope(),
    layer_types=["full_attention", "sliding_attention"],
)
_FLINT_OWN = sizes(2048, 32, 4, 128)
_MIMO = small(
    head_dim=14,
    v_head_dim=9,
    sliding_window=5,
    n_routed_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=8,
    layer_types=["full_attention", "sliding_attention"],
    mlp_layer_types=["dense", "dense"],
    num_key_value_heads=1,
    rope_parameters={
        "full_attention": rope(5_000_000.0, partial_rotary_factor=3 / 7),
        "sliding_attention": rope(partial_rotary_factor=3 / 7),
    },
)

FORMS = (
    Form(
        name="alibi",
        about="scores fall with the distance, by a slope for each head",
        equation="q,k,v",
        source="arXiv:2108.12409",
        position=Alibi(),
        layers=(
            Layer(
                model="bloom",
                attention="BloomAttention",
                network="BloomModel",
                at="h.1.self_attention",
                # The module adds the residual to its output.
                writes="dense",
                config={"vocab_size": 29, "hidden_size": 40, "n_layer": 2, "n_head": 4},
                own=sizes(64, 8, 8, 8),
                weights={
                    "q": Weight("query_key_value", (ByGroup("q"),)),
                    "k": Weight("query_key_value", (ByGroup("k"),)),
                    "v": Weight("query_key_value", (ByGroup("v"),)),
                    "o": Weight("dense"),
                },
            ),
            Layer(
                model="mpt",
                attention="MptAttention",
                network="MptModel",
                at="blocks.1.attn",
                config={"vocab_size": 29, "d_model": 40, "n_layers": 2, "n_heads": 4},
                own=sizes(2048, 16, 16, 128),
                weights={
                    "q": Weight("Wqkv", (Stacked("q"),)),
                    "k": Weight("Wqkv", (Stacked("k"),)),
                    "v": Weight("Wqkv", (Stacked("v"),)),
                    "o": Weight("out_proj"),
                },
            ),
        ),
    ),
    Form(
        name="soft-cap",
        about="scores are capped by a hyperbolic tangent before the mask",
        equation="q,k,v/{kv_heads}+softcap{softcap}",
        source="arXiv:2408.00118",
        position=Rotary(),
        numbers={"softcap": 50},
        layers=(
            Layer(
                model="gemma2",
                attention="Gemma2Attention",
                network="Gemma2Model",
                at="layers.1.self_attn",
                config=small(head_dim=14, query_pre_attn_scalar=11, attn_logit_softcapping=2.0),
                own=sizes(2304, 8, 4, 256, softcap=50, scale=1 / 16),
                sizes={
                    "softcap": "attn_logit_softcapping",
                    "scale": lambda config: config.query_pre_attn_scalar**-0.5,
                },
                weights={**separate(), "q": Weight("q_proj", (ScoreScale("scale"),))},
            ),
        ),
        used_by=("vaultgemma", "t5gemma", "videoprism"),
    ),
    Form(
        name="soft-cap-window",
        about="every other layer of those: under a window",
        equation="q,k,v/{kv_heads}+window{window}+softcap{softcap}",
        source="arXiv:2408.00118",
        position=Rotary(),
        numbers={"softcap": 50, "window": 4096},
        layers=(
            Layer(
                model="gemma2",
                attention="Gemma2Attention",
                network="Gemma2Model",
                at="layers.0.self_attn",
                config=small(
                    head_dim=14,
                    query_pre_attn_scalar=11,
                    attn_logit_softcapping=2.0,
                    sliding_window=5,
                ),
                own=sizes(2304, 8, 4, 256, softcap=50, window=4096, scale=1 / 16),
                sizes={
                    "softcap": "attn_logit_softcapping",
                    "scale": lambda config: config.query_pre_attn_scalar**-0.5,
                },
                weights={**separate(), "q": Weight("q_proj", (ScoreScale("scale"),))},
            ),
        ),
    ),
    Form(
        name="alibi-in-bf16",
        about="slopes rounded to bf16, and divided by the root of the head's width with the scores",
        equation=None,
        lacks="slopes as numbers of the model: the notation has those of arXiv:2108.12409",
        source="transformers, models/falcon",
        used_by=("falcon FalconAttention",),
    ),
    Form(
        name="sink-logit",
        about="a learned logit of each head joins the softmax and has no value",
        equation="q,k,v/{kv_heads}+sinklogit",
        source="arXiv:2508.10925",
        position=Rotary(),
        layers=(_GPT_OSS_FULL,),
        used_by=("granite_swa", "granitemoe_swa", "openai_privacy_filter"),
    ),
    Form(
        name="sink-logit-window",
        about="the layers between those: the same under a window",
        equation="q,k,v/{kv_heads}+window{window}+sinklogit",
        source="arXiv:2508.10925",
        position=Rotary(),
        numbers={"window": 128},
        layers=(
            replace(
                _GPT_OSS_FULL,
                at="layers.1.self_attn",
                own=sizes(2880, 64, 8, 64, window=128),
            ),
        ),
    ),
    Form(
        name="sink-logit-norm",
        about="a learned logit, and RMS norm of Q and K; no positions",
        equation="q,k,v/{kv_heads}+qknorm+nope+sinklogit",
        source="transformers, models/flint",
        position=Rotary(),
        layers=(
            Layer(
                model="flint",
                attention="FlintAttention",
                network="FlintModel",
                at="layers.0.self_attn",
                config=_FLINT,
                own=_FLINT_OWN,
                weights={**separate(), **_SINK, **_SCALES},
            ),
        ),
    ),
    Form(
        name="sink-logit-norm-window",
        about="the layers between those: RoPE under a window",
        equation="q,k,v/{kv_heads}+qknorm+window{window}+sinklogit",
        source="transformers, models/flint",
        position=Rotary(),
        numbers={"window": 128},
        layers=(
            Layer(
                model="flint",
                attention="FlintAttention",
                network="FlintModel",
                at="layers.1.self_attn",
                config=_FLINT,
                own={**_FLINT_OWN, "window": 513},
                weights={**separate(), **_SINK, **_SCALES},
            ),
        ),
    ),
    Form(
        name="narrow-value",
        about="heads of V are narrower than those of K",
        equation="q,k,v/{kv_heads}+valuedim{value_dim}",
        source="transformers, models/mimo_v2_flash",
        position=Rotary(),
        numbers={"value_dim": 48},
        library_keeps=NARROW,
        layers=(
            Layer(
                model="mimo_v2_flash",
                attention="MiMoV2FlashAttention",
                network="MiMoV2FlashModel",
                at="layers.0.self_attn",
                config=_MIMO,
                own=sizes(4096, 64, 4, 192, value_dim=128, value_scale=0.707),
                sizes={"value_dim": "v_head_dim", "value_scale": "attention_value_scale"},
                weights={**separate(), "v": Weight("v_proj", (Times("value_scale"),))},
                position=Rotary(base=5_000_000.0, share=3 / 7),
            ),
        ),
    ),
    Form(
        name="narrow-value-window",
        about="the layers between those: a window, a learned logit, twice the heads of K and V",
        equation="q,k,v/{kv_heads}+valuedim{value_dim}+window{window}+sinklogit",
        source="transformers, models/mimo_v2_flash",
        position=Rotary(),
        numbers={"value_dim": 48, "window": 128},
        library_keeps=NARROW,
        layers=(
            Layer(
                model="mimo_v2_flash",
                attention="MiMoV2FlashAttention",
                network="MiMoV2FlashModel",
                at="layers.1.self_attn",
                config=_MIMO,
                own=sizes(4096, 64, 8, 192, value_dim=128, value_scale=0.707, window=129),
                sizes={
                    "value_dim": "v_head_dim",
                    "value_scale": "attention_value_scale",
                    "kv_heads": lambda config: 2 * config.num_key_value_heads,
                },
                weights={**separate(), **_SINK, "v": Weight("v_proj", (Times("value_scale"),))},
                position=Rotary(share=3 / 7),
            ),
        ),
    ),
    Form(
        name="row-temperature",
        about="queries are multiplied by a slowly growing function of their position",
        equation=None,
        lacks="a temperature of the row: a logarithm of the position, fixed or learned",
        source="transformers, models/llama4 and models/ministral3",
        used_by=(
            "llama4 Llama4TextAttention (layers without positions)",
            "ministral3 Ministral3Attention",
            "mistral4 Mistral4Attention",
        ),
    ),
    Form(
        name="chunks",
        about="a token sees the tokens of its own chunk only",
        equation=None,
        lacks="a mask by chunk of positions; a layer in which the text fits one chunk is "
        "norm-after-rotary",
        source="transformers, models/llama4",
        position=Rotary(),
        used_by=("llama4 Llama4TextAttention (layers with positions)",),
    ),
    Form(
        name="clamp",
        about="Q, K and V are cut at a bound on both sides",
        equation=None,
        lacks="a clamp of heads, through which no matrix can be absorbed",
        source="transformers, models/olmo",
        position=Rotary(),
        used_by=("olmo OlmoAttention", "olmoe OlmoeAttention", "dbrx DbrxAttention", "mpt"),
    ),
    Form(
        name="distance-buckets",
        about="a learned number per head and bucket of the distance is added to the scores",
        equation=None,
        lacks="a table of learned biases by head and bucket of the distance",
        source="arXiv:1910.10683",
        used_by=(
            "t5 T5Attention",
            "mt5 MT5Attention",
            "umt5 UMT5Attention",
            "mpnet MPNetSelfAttention",
            "swin SwinAttention",
            "beit BeitAttention",
            "levit LevitAttention",
        ),
    ),
)
