"""Sizes by name, and the small configs in which a library's layer is run."""

from typing import Any

from qkvbench.atlas.kit.weights import Sizes

# Small, odd where the library allows it, and different from each other.
SMALL: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 40,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Of encoder-decoder models, whose two parts have settings of their own.
BART: dict[str, Any] = {
    "vocab_size": 29,
    "d_model": 40,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 18,
    "decoder_ffn_dim": 18,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
WHISPER: dict[str, Any] = {
    **BART,
    "num_mel_bins": 7,
    "max_source_positions": 13,
    "max_target_positions": 32,
}
T5: dict[str, Any] = {
    "vocab_size": 29,
    "d_model": 40,
    "d_kv": 12,
    "d_ff": 18,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def small(*without: str, **settings: Any) -> dict[str, Any]:
    """The settings of a small config; some are replaced, and those in `without` left out."""
    return {name: each for name, each in (SMALL | settings).items() if name not in without}


def sizes(d_model: int, heads: int, kv_heads: int, head_dim: int, **numbers: float) -> Sizes:
    """Sizes by name."""
    named = {"d_model": d_model, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return {**named, **numbers}


def rope(base: float = 10_000.0, **settings: Any) -> dict[str, Any]:
    """The RoPE settings of a config."""
    return {"rope_type": "default", "rope_theta": base, **settings}
