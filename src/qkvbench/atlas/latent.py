"""K and V are made of a latent, and K has one more head of its own for RoPE."""

from typing import Any

from qkvbench.atlas.kit.form import Form, Kept, Layer, Reading
from qkvbench.atlas.kit.sizes import rope, sizes, small
from qkvbench.atlas.kit.weights import AnyWeight, HeadRows, PairsToHalves, Rows, Times, Weight
from qkvbench.model import Rotary

# A latent and a head with RoPE for all heads together, as DeepSeek V2 keeps them.
LATENT = (Kept("latent", 1, "rank"), Kept("RoPE head of K", 1, "rope_dim"))
_NUMBERS = {"rank": 512, "rope_dim": 64}
SIZES: dict[str, Reading] = {
    "kv_heads": "num_attention_heads",
    "head_dim": "qk_nope_head_dim",
    "value_dim": "v_head_dim",
    "rank": "kv_lora_rank",
    "rope_dim": "qk_rope_head_dim",
}
_QUERY: dict[str, Reading] = {"query_rank": "q_lora_rank"}
TINY: dict[str, Any] = {
    "q_lora_rank": 9,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "rope_parameters": rope(),
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 2,
}


def _key_value(*pairs: PairsToHalves) -> dict[str, AnyWeight]:
    """K and V of a latent, their projections stacked as DeepSeek's are."""
    both = ("head_dim", "value_dim")
    return {
        "c": Weight("kv_a_proj_with_mqa", (Rows((), ("rank",)),)),
        "kr": Weight("kv_a_proj_with_mqa", (Rows(("rank",)), *pairs)),
        "c.scale": Weight("kv_a_layernorm.weight"),
        "k.up": Weight("kv_b_proj.weight", (HeadRows((), ("head_dim",), both),)),
        "v.up": Weight("kv_b_proj.weight", (HeadRows(("head_dim",), both, both),)),
        "o": Weight("o_proj"),
    }


def _query(*pairs: PairsToHalves) -> dict[str, AnyWeight]:
    """Q from a latent of its own."""
    both = ("head_dim", "rope_dim")
    return {
        "cq": Weight("q_a_proj"),
        "cq.scale": Weight("q_a_layernorm.weight"),
        "q.up": Weight("q_b_proj.weight", (HeadRows((), ("head_dim",), both),)),
        "qr.up": Weight("q_b_proj.weight", (HeadRows(("head_dim",), both, both), *pairs)),
    }


def _plain_query(*pairs: PairsToHalves) -> dict[str, AnyWeight]:
    """Q from the stream."""
    both = ("head_dim", "rope_dim")
    return {
        "q": Weight("q_proj", (HeadRows((), ("head_dim",), both),)),
        "qr": Weight("q_proj", (HeadRows(("head_dim",), both, both), *pairs)),
    }


_PAIRS = PairsToHalves("rope_dim")
LATENT_WEIGHTS: dict[str, AnyWeight] = {**_query(_PAIRS), **_key_value(_PAIRS)}
_KEY = "k=L({rank}),v=L({rank})+latentnorm+ropehead{rope_dim}"

FORMS = (
    Form(
        name="latent",
        about="K and V from one latent, Q from another; one head with RoPE joins all heads of K",
        equation=f"q=L({{query_rank}}),{_KEY}",
        source="arXiv:2405.04434",
        position=Rotary(),
        numbers={**_NUMBERS, "query_rank": 1536},
        library_keeps=LATENT,
        layers=(
            Layer(
                model="deepseek_v2",
                attention="DeepseekV2Attention",
                network="DeepseekV2Model",
                at="layers.1.self_attn",
                config=small(**TINY),
                own=sizes(4096, 32, 32, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights=LATENT_WEIGHTS,
            ),
            Layer(
                model="deepseek_v3",
                attention="DeepseekV3Attention",
                network="DeepseekV3Model",
                at="layers.1.self_attn",
                config=small(**TINY),
                own=sizes(
                    7168, 128, 128, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536
                ),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights=LATENT_WEIGHTS,
            ),
            Layer(
                model="minicpm3",
                attention="MiniCPM3Attention",
                network="MiniCPM3Model",
                at="layers.1.self_attn",
                config=small(**TINY),
                own=sizes(2560, 40, 40, 64, value_dim=64, rank=256, rope_dim=32, query_rank=768),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights={**_query(), **_key_value()},
            ),
            Layer(
                model="youtu",
                attention="YoutuAttention",
                network="YoutuModel",
                at="layers.1.self_attn",
                config=small(**TINY),
                own=sizes(2048, 16, 16, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights=LATENT_WEIGHTS,
            ),
            Layer(
                model="axk1",
                attention="AXK1Attention",
                network="AXK1Model",
                at="layers.1.self_attn",
                config=small(**TINY),
                own=sizes(7168, 64, 64, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights=LATENT_WEIGHTS,
            ),
            Layer(
                model="longcat_flash",
                attention="LongcatFlashMLA",
                network="LongcatFlashModel",
                at="layers.0.self_attn.1",
                config=small(
                    **TINY,
                    num_layers=1,
                    head_dim=6,
                    ffn_hidden_size=18,
                    expert_ffn_hidden_size=8,
                    n_routed_experts=2,
                    zero_expert_num=1,
                    moe_topk=2,
                ),
                own=sizes(6144, 64, 64, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536),
                sizes={
                    **SIZES,
                    **_QUERY,
                    "norm_eps": 1e-6,
                    "query_scale": lambda config: (config.hidden_size / config.q_lora_rank) ** 0.5,
                    "scale": lambda config: (config.hidden_size / config.kv_lora_rank) ** 0.5,
                },
                weights={
                    **_query(_PAIRS),
                    **_key_value(_PAIRS),
                    "cq.scale": Weight("q_a_layernorm.weight", (Times("query_scale"),)),
                    "c.scale": Weight("kv_a_layernorm.weight", (Times("scale"),)),
                },
            ),
        ),
        used_by=("mistral4",),
    ),
    Form(
        name="latent-plain-query",
        about="the same with Q from the stream, as in DeepSeek V2 Lite",
        equation=f"q,{_KEY}",
        source="arXiv:2405.04434",
        position=Rotary(),
        numbers=_NUMBERS,
        library_keeps=LATENT,
        layers=(
            Layer(
                model="deepseek_v2",
                attention="DeepseekV2Attention",
                network="DeepseekV2Model",
                at="layers.1.self_attn",
                config=small(**TINY | {"q_lora_rank": None}),
                own=sizes(4096, 32, 32, 128, value_dim=128, rank=512, rope_dim=64),
                sizes={**SIZES, "norm_eps": 1e-6},
                weights={**_plain_query(_PAIRS), **_key_value(_PAIRS)},
            ),
        ),
    ),
    Form(
        name="latent-wide-value",
        about="the same with heads of V wider than the part of K that the latent makes",
        equation="q=L({query_rank}),k=L({rank}),v=L({rank})+latentnorm+valuedim{value_dim}"
        "+ropehead{rope_dim}",
        source="transformers, models/glm4_moe_lite",
        position=Rotary(),
        numbers={**_NUMBERS, "query_rank": 1536, "value_dim": 128},
        library_keeps=LATENT,
        layers=(
            Layer(
                model="glm4_moe_lite",
                attention="Glm4MoeLiteAttention",
                network="Glm4MoeLiteModel",
                at="layers.1.self_attn",
                config=small(**TINY | {"v_head_dim": 13}),
                own=sizes(2048, 20, 20, 192, value_dim=256, rank=512, rope_dim=64, query_rank=768),
                sizes={**SIZES, **_QUERY, "norm_eps": 1e-6},
                weights=LATENT_WEIGHTS,
            ),
        ),
    ),
    Form(
        name="latent-no-positions",
        about="the same without RoPE on the head of its own; other layers carry the order",
        equation=f"q,{_KEY}+nope",
        source="arXiv:2510.26692",
        position=Rotary(),
        numbers=_NUMBERS,
        library_keeps=LATENT,
        layers=(
            Layer(
                model="kimi_linear",
                attention="KimiLinearAttention",
                network="KimiLinearModel",
                at="layers.1.self_attn",
                config=small(
                    **TINY | {"q_lora_rank": None},
                    layer_types=["linear_attention", "full_attention"],
                    num_experts=2,
                    num_experts_per_token=1,
                ),
                own=sizes(2304, 32, 32, 128, value_dim=128, rank=512, rope_dim=64),
                sizes={**SIZES, "norm_eps": 1e-6},
                weights={**_plain_query(), **_key_value()},
            ),
        ),
        used_by=("glm5_next",),
    ),
    Form(
        name="latent-gated",
        about="the same with a gate on each head of the output",
        equation=f"q,{_KEY}+headgate",
        source="transformers, models/bailing_hybrid",
        position=Rotary(),
        numbers=_NUMBERS,
        library_keeps=LATENT,
        layers=(
            Layer(
                model="bailing_hybrid",
                attention="BailingHybridAttention",
                network="BailingHybridModel",
                at="layers.1.self_attn",
                config=small(
                    **TINY | {"q_lora_rank": None},
                    layer_types=["linear_attention", "full_attention"],
                    num_experts=2,
                    num_experts_per_tok=1,
                ),
                own=sizes(2560, 32, 32, 128, value_dim=128, rank=512, rope_dim=64),
                sizes={**SIZES, "norm_eps": 1e-6},
                weights={**_plain_query(_PAIRS), **_key_value(_PAIRS), "g": Weight("g_proj")},
            ),
        ),
        used_by=("dots3_note", "axk2", "hy_v4"),
    ),
)
