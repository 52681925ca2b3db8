"""K and V are one, or are not of this layer's own input: tied roots, and another sequence."""

from typing import Any

from qkvbench.atlas.kit.form import Form, Kept, Layer, Lender, Reading
from qkvbench.atlas.kit.sizes import BART, T5, WHISPER, sizes, small
from qkvbench.atlas.kit.weights import (
    AnyWeight,
    Fill,
    Inputs,
    LastToFront,
    PairsToHalves,
    ScoreScale,
    SpreadHalves,
    Weight,
    separate,
)
from qkvbench.atlas.normed import GEMMA4, GEMMA4_SLIDING
from qkvbench.model import Rotary, RotaryWithInverse


def _first_full(config: Any) -> int:
    return config.layer_types.index("full_attention")


_GLOBAL: dict[str, Reading] = {
    "head_dim": lambda config: config.per_layer_config[_first_full(config)].head_dim,
    "kv_heads": lambda config: config.per_layer_config[_first_full(config)].num_key_value_heads,
}
# Of the keys and values that are made of a source, for each of its tokens.
CROSS = (Kept("K of the source", "heads", "head_dim"), Kept("V of the source", "heads", "head_dim"))


def _distance(config: Any, kind: str) -> int:
    """How far below the first layer of this kind that shares is the one that it reads."""
    first = len(config.layer_types) - config.num_kv_shared_layers
    reader = config.layer_types.index(kind, first)
    return reader - max(n for n in range(first) if config.layer_types[n] == kind)


_LAST_PAIRS = (LastToFront(), PairsToHalves())
_NORMED: dict[str, AnyWeight] = {
    **separate(),
    "q.scale": Weight("q_norm.weight", (ScoreScale(1.0),)),
    "k.scale": Weight("k_norm.weight"),
}
_QUERY = {name: _NORMED[name] for name in ("q", "q.scale", "o")}
_GEMMA3N = small(
    head_dim=14,
    sliding_window=5,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    vocab_size_per_layer_input=29,
    hidden_size_per_layer_input=6,
    intermediate_size=[18] * 4,
    activation_sparsity_pattern=[0.0] * 4,
    laurel_rank=3,
    layer_types=["sliding_attention", "full_attention"] * 2,
)

FORMS = (
    Form(
        name="key-is-value",
        about="one projection is K and V: normed, with a scale and RoPE for K only",
        equation="q,k=v/{kv_heads}+qkvnorm",
        source="transformers, models/gemma4",
        position=Rotary(),
        layers=(
            Layer(
                model="gemma4",
                attention="Gemma4TextAttention",
                network="Gemma4TextModel",
                at="layers.1.self_attn",
                config=small(
                    **GEMMA4,
                    rope_parameters={
                        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                        "full_attention": {
                            "rope_type": "proportional",
                            "rope_theta": 1_000_000.0,
                            "partial_rotary_factor": 0.5,
                        },
                    },
                ),
                own=sizes(2304, 8, 4, 512),
                sizes=_GLOBAL,
                weights={
                    "q": Weight("q_proj", (SpreadHalves(),)),
                    "k": Weight("k_proj", (SpreadHalves(),)),
                    "o": Weight("o_proj", (Inputs(SpreadHalves()),)),
                    "q.scale": Weight("q_norm.weight", (SpreadHalves(), ScoreScale(1.0))),
                    "k.scale": Weight("k_norm.weight", (SpreadHalves(),)),
                },
                # The library's frequencies are those of the whole head.
                position=Rotary(base=1_000_000.0**0.5, share=0.5),
            ),
        ),
        used_by=("gemma4_unified", "diffusion_gemma"),
    ),
    Form(
        name="key-value-below",
        about="Q of its own; K and V are those of a layer below, which the cache keeps once",
        equation="q,k=K(-{distance}),v=V(-{distance})+qkvnorm",
        below="q,k,v/{kv_heads}+qkvnorm",
        source="arXiv:2405.12981",
        position=Rotary(),
        numbers={"distance": 1},
        library_keeps=(),
        layers=(
            Layer(
                model="gemma3n",
                attention="Gemma3nTextAttention",
                network="Gemma3nTextModel",
                at="layers.3.self_attn",
                config=_GEMMA3N,
                own=sizes(2048, 8, 2, 256, distance=5),
                sizes={"distance": lambda config: _distance(config, "full_attention")},
                weights=_QUERY,
                position=Rotary(base=1_000_000.0),
                lender=Lender("layers.1.self_attn", _NORMED),
            ),
        ),
        used_by=("mistral_large4",),
    ),
    Form(
        name="key-value-below-window",
        about="the same under a window",
        equation="q,k=K(-{distance}),v=V(-{distance})+qkvnorm+window{window}",
        below="q,k,v/{kv_heads}+qkvnorm+window{window}",
        source="arXiv:2405.12981",
        position=Rotary(),
        numbers={"distance": 1, "window": 512},
        library_keeps=(),
        layers=(
            Layer(
                model="gemma3n",
                attention="Gemma3nTextAttention",
                network="Gemma3nTextModel",
                at="layers.2.self_attn",
                config=_GEMMA3N,
                own=sizes(2048, 8, 2, 256, distance=2, window=512),
                sizes={"distance": lambda config: _distance(config, "sliding_attention")},
                weights=_QUERY,
                lender=Lender("layers.0.self_attn", _NORMED),
            ),
            Layer(
                model="gemma4",
                attention="Gemma4TextAttention",
                network="Gemma4TextModel",
                at="layers.2.self_attn",
                config=small(
                    **GEMMA4
                    | {
                        "num_hidden_layers": 4,
                        "layer_types": ["sliding_attention", "full_attention"] * 2,
                        "num_kv_shared_layers": 2,
                        "hidden_size_per_layer_input": 6,
                    }
                ),
                own=sizes(2304, 8, 4, 256, distance=2, window=512),
                sizes={**GEMMA4_SLIDING, "distance": 2},
                weights=_QUERY,
                lender=Lender("layers.0.self_attn", _NORMED),
            ),
        ),
    ),
    Form(
        name="cross-attention",
        about="K and V are made of an encoder's output, which all layers of the decoder read",
        equation="q,k,v",
        source="arXiv:1706.03762",
        site="cross",
        library_keeps=CROSS,
        layers=(
            Layer(
                model="bart",
                attention="BartAttention",
                network="BartDecoder",
                at="layers.1.encoder_attn",
                config=BART,
                own=sizes(1024, 16, 16, 64),
                weights=separate(o="out_proj"),
                feeds="decoder tokens",
            ),
            Layer(
                model="whisper",
                attention="WhisperAttention",
                network="WhisperDecoder",
                at="layers.1.encoder_attn",
                config=WHISPER,
                own=sizes(384, 6, 6, 64),
                weights=separate(o="out_proj"),
                feeds="decoder tokens",
            ),
            Layer(
                model="t5",
                attention="T5Attention",
                network="T5Model",
                at="decoder.block.1.layer.1.EncDecAttention",
                config=T5,
                own=sizes(512, 8, 8, 64),
                sizes={"head_dim": "d_kv"},
                weights={**separate("q", "k", "v", "o"), "q": Weight("q", (ScoreScale(1.0),))},
                feeds="two texts",
            ),
        ),
        used_by=("marian", "mbart", "m2m_100", "pegasus", "plbart"),
    ),
    Form(
        name="key-is-value-inverse-rotary",
        about="one head is K and V, normed with one scale, with RoPE; the output is rotated back",
        equation="q=L({query_rank}),k=v/1+rootnorm+latentnorm+window{window}+sinklogit"
        "+outputrank{output_rank}x{groups}",
        source="transformers, models/deepseek_v4",
        position=RotaryWithInverse(share=0.125),
        numbers={"window": 128, "query_rank": 1024, "output_rank": 64, "groups": 8},
        # It caches K and V, which are one tensor, in layers without a compressor.
        library_keeps=(Kept("K", 1, "head_dim"), Kept("V", 1, "head_dim")),
        layers=(
            Layer(
                model="deepseek_v4",
                attention="DeepseekV4Attention",
                network="DeepseekV4Model",
                at="layers.1.self_attn",
                config=small(
                    head_dim=16,
                    num_key_value_heads=1,
                    q_lora_rank=9,
                    o_groups=2,
                    o_lora_rank=5,
                    sliding_window=5,
                    layer_types=["sliding_attention", "sliding_attention"],
                ),
                own=sizes(
                    4096, 64, 1, 512, window=128, query_rank=1024, output_rank=1024, groups=8
                ),
                sizes={
                    "query_rank": "q_lora_rank",
                    "output_rank": "o_lora_rank",
                    "groups": "o_groups",
                },
                weights={
                    "cq": Weight("q_a_proj"),
                    "cq.scale": Weight("q_a_norm.weight"),
                    "q.up": Weight("q_b_proj.weight", _LAST_PAIRS),
                    "q.scale": Fill(1.0),
                    "k": Weight("kv_proj", _LAST_PAIRS),
                    "k.scale": Weight("kv_norm.weight", _LAST_PAIRS),
                    "o.down": Weight("o_a_proj.weight", tuple(map(Inputs, _LAST_PAIRS))),
                    "o": Weight("o_b_proj"),
                    "correction.sink": Weight("sinks"),
                },
                position=RotaryWithInverse(share=0.125),
            ),
        ),
    ),
    Form(
        name="pooled-roots",
        about="behind the window of that form one pooled row for every 4 or 128 tokens",
        equation=None,
        lacks="a cached row for several tokens, and a choice of rows by content",
        source="transformers, models/deepseek_v4",
        position=RotaryWithInverse(share=0.125),
        library_keeps=(Kept("K and V in the window", 1, "head_dim"),),
        used_by=("deepseek_v4 DeepseekV4HCACompressor", "deepseek_v4 DeepseekV4CSACompressor"),
    ),
)
