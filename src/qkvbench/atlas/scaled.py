"""RoPE with other frequencies, for texts longer than those of the training."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qkvbench.atlas.kit.form import Form, Layer, Reading
from qkvbench.atlas.kit.sizes import rope, sizes, small
from qkvbench.atlas.kit.weights import PlusOne, ScoreScale, Times, Weight, separate
from qkvbench.atlas.latent import LATENT, LATENT_WEIGHTS, SIZES, TINY
from qkvbench.atlas.scores import GPT_OSS, SINK
from qkvbench.model import Rotary

# So small that the pairs of the small configs are of every kind: kept, between, divided.
_LENGTH = 16
_LLAMA3 = rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=_LENGTH,
)
_YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=512)


def _setting(name: str, at: str | None = None) -> Reading:
    """A number of the RoPE settings of a config, of the kind of layer `at` if each has its own."""

    def read(config: Any) -> Any:
        settings = config.rope_parameters
        return (settings[at] if at else settings).get(name)

    return read


_READ: Mapping[str, Reading] = {
    "factor": _setting("factor"),
    "length": _setting("original_max_position_embeddings"),
}

FORMS = (
    Form(
        name="rotary-llama3",
        about="RoPE with the frequencies of Llama 3.1: those of long waves are lower",
        equation="q,k,v/{kv_heads}+ropellama{factor}x{length}",
        source="arXiv:2407.21783",
        position=Rotary(),
        numbers={"factor": 8, "length": 8192},
        layers=(
            Layer(
                model="llama",
                attention="LlamaAttention",
                network="LlamaModel",
                at="layers.1.self_attn",
                config=small(head_dim=14, rope_parameters=_LLAMA3),
                own=sizes(4096, 32, 32, 128),
                sizes=_READ,
                weights=separate(),
            ),
        ),
        used_by=("granite", "mllama MllamaTextSelfAttention"),
    ),
    Form(
        name="rotary-llama3-norm",
        about="the same, and RMS norm of Q and K",
        equation="q,k,v/{kv_heads}+qknorm+ropellama{factor}x{length}",
        source="transformers, models/apertus",
        position=Rotary(),
        numbers={"factor": 8, "length": 8192},
        layers=(
            Layer(
                model="apertus",
                attention="ApertusAttention",
                network="ApertusModel",
                at="layers.1.self_attn",
                config=small(rope_parameters=_LLAMA3),
                own=sizes(4096, 32, 32, 128, factor=8, length=8192),
                sizes=_READ,
                weights={
                    **separate(),
                    "q.scale": Weight("q_norm.weight"),
                    "k.scale": Weight("k_norm.weight"),
                },
            ),
        ),
    ),
    Form(
        name="rotary-linear",
        about="the layers of larger Gemma 3 without a window: all frequencies are lower",
        equation="q,k,v/{kv_heads}+qknorm+ropebase{base}+ropelinear{factor}",
        source="arXiv:2503.19786",
        position=Rotary(),
        numbers={"base": 1_000_000, "factor": 8},
        layers=(
            Layer(
                model="gemma3",
                attention="Gemma3Attention",
                network="Gemma3TextModel",
                at="layers.0.self_attn",
                config=small(
                    head_dim=14,
                    query_pre_attn_scalar=11,
                    layer_types=["full_attention", "sliding_attention"],
                    rope_parameters={
                        "full_attention": rope(500.0, rope_type="linear", factor=8.0),
                        "sliding_attention": rope(),
                    },
                ),
                own=sizes(2304, 8, 4, 256, scale=1 / 16, base=1_000_000),
                sizes={
                    "scale": lambda config: config.query_pre_attn_scalar**-0.5,
                    "base": _setting("rope_theta", "full_attention"),
                    "factor": _setting("factor", "full_attention"),
                },
                weights={
                    **separate(),
                    "q.scale": Weight("q_norm.weight", (PlusOne(), ScoreScale("scale"))),
                    "k.scale": Weight("k_norm.weight", (PlusOne(),)),
                },
            ),
        ),
    ),
    Form(
        name="rotary-yarn",
        about="RoPE with YaRN: slow pairs are slower, and scores are larger",
        equation="q,k,v/{kv_heads}+ropeyarn{factor}x{length}",
        source="arXiv:2309.00071",
        position=Rotary(),
        numbers={"factor": 4, "length": 32_768},
        layers=(
            Layer(
                model="qwen2",
                attention="Qwen2Attention",
                network="Qwen2Model",
                at="layers.1.self_attn",
                config=small(rope_parameters=_YARN),
                own=sizes(4096, 32, 32, 128),
                sizes=_READ,
                weights=separate(),
            ),
            Layer(
                model="llama",
                attention="LlamaAttention",
                network="LlamaModel",
                at="layers.1.self_attn",
                config=small(head_dim=14, rope_parameters=_YARN),
                own=sizes(4096, 32, 32, 128),
                sizes=_READ,
                weights=separate(),
            ),
        ),
        used_by=("qwen2_moe", "qwen3"),
    ),
    Form(
        name="sink-logit-yarn",
        about="every other layer of GPT-OSS: YaRN, and a learned logit in the softmax",
        equation="q,k,v/{kv_heads}+ropebase{base}+ropeyarnexact{factor}x{length}+sinklogit",
        source="arXiv:2508.10925",
        position=Rotary(),
        numbers={"base": 150_000, "factor": 32, "length": 4096},
        layers=(
            Layer(
                model="gpt_oss",
                attention="GptOssAttention",
                network="GptOssModel",
                at="layers.0.self_attn",
                config=GPT_OSS | {"rope_parameters": _YARN | {"truncate": False}},
                own=sizes(2880, 64, 8, 64, base=150_000, factor=32, length=4096),
                sizes={**_READ, "base": _setting("rope_theta")},
                weights={**separate(), **SINK},
            ),
        ),
        used_by=("openai_privacy_filter",),
    ),
    Form(
        name="sink-logit-yarn-window",
        about="the other layers of such a model: the same under a window",
        equation="q,k,v/{kv_heads}+ropebase{base}+ropeyarnexact{factor}x{length}"
        "+window{window}+sinklogit",
        source="arXiv:2508.10925",
        position=Rotary(),
        numbers={"base": 150_000, "factor": 32, "length": 4096, "window": 128},
        layers=(
            Layer(
                model="gpt_oss",
                attention="GptOssAttention",
                network="GptOssModel",
                at="layers.1.self_attn",
                config=GPT_OSS | {"rope_parameters": _YARN | {"truncate": False}},
                own=sizes(2880, 64, 8, 64, base=150_000, factor=32, length=4096, window=128),
                sizes={**_READ, "base": _setting("rope_theta")},
                weights={**separate(), **SINK},
            ),
        ),
    ),
    Form(
        name="latent-yarn",
        about="DeepSeek V3 as it was trained for long texts: YaRN, its factor on all of the scores",
        equation="q=L({query_rank}),k=L({rank}),v=L({rank})+latentnorm+ropehead{rope_dim}"
        "+ropeyarn{factor}x{length}x1",
        source="arXiv:2412.19437",
        position=Rotary(),
        numbers={
            "rank": 512,
            "rope_dim": 64,
            "query_rank": 1536,
            "factor": 40,
            "length": 4096,
        },
        library_keeps=LATENT,
        layers=tuple(
            Layer(
                model=f"deepseek_{version}",
                attention=f"Deepseek{version.upper()}Attention",
                network=f"Deepseek{version.upper()}Model",
                at="layers.1.self_attn",
                config=small(
                    **TINY
                    | {
                        "rope_parameters": _YARN
                        | {"factor": 40.0, "mscale": mscale, "mscale_all_dim": mscale}
                    }
                ),
                own=own,
                sizes={
                    **SIZES,
                    **_READ,
                    "query_rank": "q_lora_rank",
                    "norm_eps": 1e-6,
                    "scores": (0.1 * mscale * math.log(40) + 1) ** 2,
                },
                weights={
                    **LATENT_WEIGHTS,
                    **{
                        name: replace(each, steps=(*each.steps, Times("scores")))
                        for name in ("q.up", "qr.up")
                        if isinstance(each := LATENT_WEIGHTS[name], Weight)
                    },
                },
            )
            for version, mscale, own in (
                (
                    "v2",
                    0.707,
                    sizes(4096, 32, 32, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536),
                ),
                (
                    "v3",
                    1.0,
                    sizes(
                        7168, 128, 128, 128, value_dim=128, rank=512, rope_dim=64, query_rank=1536
                    ),
                ),
            )
        ),
    ),
    Form(
        name="row-temperature-yarn",
        about="YaRN, and scores that grow slowly with the position",
        equation="q,k,v/{kv_heads}+ropebase{base}+ropeyarn{factor}x{length}x1"
        "+logscaleearlier{length}",
        source="transformers, models/ministral3",
        position=Rotary(),
        numbers={"base": 1_000_000, "factor": 16, "length": 16_384},
        layers=(
            Layer(
                model="ministral3",
                attention="Ministral3Attention",
                network="Ministral3Model",
                at="layers.1.self_attn",
                config=small(
                    head_dim=14,
                    rope_parameters=_YARN
                    | {
                        "original_max_position_embeddings": 7,
                        "mscale": 1.0,
                        "mscale_all_dim": 1.0,
                        "llama_4_scaling_beta": 0.1,
                    },
                ),
                own=sizes(4096, 32, 8, 128, base=1_000_000, factor=16, length=16_384),
                sizes={**_READ, "base": _setting("rope_theta")},
                weights=separate(),
            ),
        ),
        used_by=("mistral4 Mistral4Attention",),
    ),
    Form(
        name="length-dependent-rotary",
        about="frequencies that depend on the length of the text: longrope, dynamic",
        equation=None,
        lacks="longrope: two lists with a factor for each pair, of which the length of the text "
        "chooses one, which makes cached keys wrong; dynamic: a base that grows with it",
        source="arXiv:2402.13753",
        position=Rotary(),
        used_by=("phi3", "phimoe", "minicpm3"),
    ),
)
