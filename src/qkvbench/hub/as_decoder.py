"""A pretrained decoder's settings as a model of this bench: the same sizes, and no weights."""

from dataclasses import replace
from typing import Any

from transformers import AutoConfig

from qkvbench.hub.checkpoint_files import CheckpointFiles
from qkvbench.hub.families import family_of, geometry_of, rope_base_of, rotary_share_of
from qkvbench.hub.models import layer_plans, register
from qkvbench.hub.safety import printable
from qkvbench.model import (
    Attention,
    Block,
    Decoder,
    FeedForward,
    Init,
    Learned,
    Model,
    Position,
    Rotary,
)
from qkvbench.model.parts import RMSNorm, SwiGLU
from qkvbench.variant import NO_ATTENTION, Variant

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "opt", "phi")


def decoder_of(source: str) -> Model:
    """The decoder in a folder, in a package or on the Hub, of which it reads config.json alone.

    Its layers have the checkpoint's `qkv_mode`, and its sliding windows. Biases and norms are those
    of the family's usual layer, which leaves less than 1% of the weights out or adds as many.
    ValueError says why a checkpoint is none.
    """
    files = CheckpointFiles(source)
    kind = str(files.settings.get("model_type")).removeprefix("qkv_")
    if kind not in DECODERS:
        raise ValueError(
            f"{printable(source)} is a model of the type {printable(kind)}; costs are computed of "
            f"decoders: {', '.join(DECODERS)} (SmolLM is a llama)."
        )
    if (narrow := files.settings.get("word_embed_proj_dim")) not in (
        None,
        files.settings.get("hidden_size"),
    ):
        raise ValueError(
            f"{printable(source)} has embeddings of {printable(narrow)} numbers, and projections "
            "of them, which are not supported."
        )
    register()
    config: Any = AutoConfig.from_pretrained(
        files.folder, local_files_only=True, trust_remote_code=False
    )
    windows = (family_of(config).window(config, layer) for layer in range(config.num_hidden_layers))
    return Model(
        printable(source),
        geometry_of(config),
        tuple(
            _block(kind, config, _within(plan.variant, window))
            for plan, window in zip(layer_plans(config), windows, strict=True)
        ),
        _position(kind, config),
        Decoder(config.vocab_size, tied=config.tie_word_embeddings),
        # No weights are drawn.
        Init(embedding_std=0.02, position_std=0.02),
    )


def within_windows(model: Model, checkpoint: Model) -> Model:
    """The model, each layer under the sliding window that the checkpoint's layer has.

    Layers with a sparse mask of their own keep it.
    """
    blocks: list[Block] = []
    for block, theirs in zip(model.blocks, checkpoint.blocks, strict=True):
        assert block.attention, "each layer of a decoder has its place for attention"
        assert theirs.attention, "each layer of a checkpoint attends"
        window = theirs.attention.variant.scores.window
        blocks.append(replace(block, attention=Attention(_within(block.attention.variant, window))))
    return replace(model, blocks=tuple(blocks))


def _within(variant: Variant, window: int | None) -> Variant:
    if window is None or variant == NO_ATTENTION:
        return variant
    own = variant.scores
    if own.window or own.chunk or own.blocks or own.linear:
        return variant
    return replace(variant, scores=replace(own, window=window))


def _block(kind: str, config: Any, variant: Variant) -> Block:
    attention = Attention(variant)
    match kind:
        case "gpt2":
            return Block(attention, FeedForward(config.n_inner or 4 * config.n_embd))
        case "opt":
            return Block(attention, FeedForward(config.ffn_dim))
        case "gpt_neox" | "phi":
            wide = FeedForward(config.intermediate_size)
            return Block(attention, wide, residual="parallel")
        case _:
            gated = SwiGLU(config.intermediate_size, "swiglu")
            return Block(attention, gated, RMSNorm("rms", eps=config.rms_norm_eps), biases=False)


def _position(kind: str, config: Any) -> Position:
    match kind:
        case "gpt2":
            return Learned(config.n_positions)
        case "opt":
            return Learned(config.max_position_embeddings)
        case _:
            return Rotary(rope_base_of(config), rotary_share_of(config))
