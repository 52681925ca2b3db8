"""The output of attention is multiplied by a sigmoid of the query's own input."""

from qkvbench.atlas.kit.form import Form, Layer
from qkvbench.atlas.kit.sizes import rope, sizes, small
from qkvbench.atlas.kit.weights import AnyWeight, HeadRows, PlusOne, Weight, separate
from qkvbench.model import Rotary

_SCALES: dict[str, AnyWeight] = {
    "q.scale": Weight("q_norm.weight"),
    "k.scale": Weight("k_norm.weight"),
}
_PLUS_ONE: dict[str, AnyWeight] = {
    "q.scale": Weight("q_norm.weight", (PlusOne(),)),
    "k.scale": Weight("k_norm.weight", (PlusOne(),)),
}
# The projection of Q has for each head its query, then its gate.
_BOTH = ("head_dim", "head_dim")
_GATE_IN_QUERY: dict[str, AnyWeight] = {
    "q": Weight("q_proj", (HeadRows((), ("head_dim",), _BOTH),)),
    "g": Weight("q_proj", (HeadRows(("head_dim",), _BOTH, _BOTH),)),
}
_HYBRID = {
    "head_dim": 14,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": rope(partial_rotary_factor=3 / 7),
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
_AFMOE = small(
    head_dim=14,
    sliding_window=5,
    num_dense_layers=2,
    layer_types=["full_attention", "sliding_attention"],
    rope_parameters=rope(),
)

FORMS = (
    Form(
        name="gate",
        about="a gate for each number of the output; RMS norm of Q and K",
        equation="q,k,v/{kv_heads}+qknorm+gate",
        source="arXiv:2505.06708",
        position=Rotary(share=0.25),
        layers=(
            Layer(
                model="qwen3_next",
                attention="Qwen3NextAttention",
                network="Qwen3NextModel",
                at="layers.1.self_attn",
                config=small(
                    **_HYBRID,
                    num_experts=2,
                    num_experts_per_tok=1,
                    moe_intermediate_size=8,
                    shared_expert_intermediate_size=8,
                ),
                own=sizes(2048, 16, 2, 256),
                weights={**separate(), **_GATE_IN_QUERY, **_PLUS_ONE},
                position=Rotary(share=3 / 7),
            ),
            Layer(
                model="qwen3_5",
                attention="Qwen3_5Attention",
                network="Qwen3_5TextModel",
                at="layers.1.self_attn",
                config=small(**_HYBRID),
                own=sizes(4096, 16, 4, 256),
                weights={**separate(), **_GATE_IN_QUERY, **_PLUS_ONE},
                position=Rotary(share=3 / 7),
            ),
        ),
        used_by=("qwen3_5_moe", "hrm_text", "muse_spark", "muse_glimmer", "laguna (softplus)"),
    ),
    Form(
        name="gate-no-positions",
        about="a gate for each number; no positions",
        equation="q,k,v/{kv_heads}+qknorm+nope+gate",
        source="transformers, models/afmoe",
        position=Rotary(),
        layers=(
            Layer(
                model="afmoe",
                attention="AfmoeAttention",
                network="AfmoeModel",
                at="layers.0.self_attn",
                config=_AFMOE,
                own=sizes(2048, 16, 16, 128),
                weights={**separate(), **_SCALES, "g": Weight("gate_proj")},
            ),
        ),
    ),
    Form(
        name="gate-window",
        about="the other layers of such a model: RoPE under a window",
        equation="q,k,v/{kv_heads}+qknorm+window{window}+gate",
        source="transformers, models/afmoe",
        position=Rotary(),
        numbers={"window": 1024},
        layers=(
            Layer(
                model="afmoe",
                attention="AfmoeAttention",
                network="AfmoeModel",
                at="layers.1.self_attn",
                config=_AFMOE,
                own=sizes(2048, 16, 16, 128, window=1024),
                weights={**separate(), **_SCALES, "g": Weight("gate_proj")},
            ),
        ),
    ),
    Form(
        name="head-gate",
        about="a gate for each head of the output; RMS norm of Q and K",
        equation="q,k,v/{kv_heads}+qknorm+headgate",
        source="transformers, models/lfm3",
        position=Rotary(),
        layers=(
            Layer(
                model="lfm3",
                attention="Lfm3Attention",
                network="Lfm3Model",
                at="layers.1.self_attn",
                config=small(
                    head_dim=14,
                    use_attention_gate=True,
                    rope_parameters={"full_attention": rope()},
                    layer_types=["full_attention", "full_attention"],
                ),
                own=sizes(2048, 16, 4, 128),
                weights={**separate(), **_SCALES, "g": Weight("g_proj")},
            ),
        ),
        used_by=("step3p7",),
    ),
)
