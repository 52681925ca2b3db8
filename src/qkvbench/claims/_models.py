"""The models that the sources speak of, and what removing projections can save of them."""

from qkvbench.claims._figure import Figure, millions
from qkvbench.cost import attention_macs, cache_bytes_per_token, flops, macs, parameters
from qkvbench.model import (
    PRESETS,
    Decoder,
    Encoder,
    FeedForward,
    Init,
    Learned,
    Model,
    Tokens,
    transformer,
)
from qkvbench.variant import parse

_START = Init(embedding_std=0.02, position_std=0.02, weight_std=0.02)


def gpt2_small() -> Model:
    """What the article's 125M model must be: GPT-2 small, with its own vocabulary and length."""
    return transformer(
        "gpt2-small",
        Decoder(vocabulary=50_257, tied=True),
        layers=12,
        d_model=768,
        heads=12,
        position=Learned(1024),
        init=_START,
    )


def study_300m() -> Model:
    """The study's smaller language model."""
    return PRESETS["gpt-300m"]()


def study_1_2b() -> Model:
    """The study's larger language model."""
    return PRESETS["gpt-1.2b"]()


def study_synthetic() -> tuple[Model, Model]:
    """The smallest and the largest encoder of the study's synthetic tasks."""
    return _synthetic(32, 2, length=16), _synthetic(256, 4, length=128)


def _synthetic(d_model: int, layers: int, *, length: int) -> Model:
    return transformer(
        "synthetic",
        Encoder(Tokens(10), 10, "each position"),
        layers=layers,
        d_model=d_model,
        heads=4,
        position=Learned(length),
        init=_START,
    )


def total(model: Model, variant: str) -> int:
    """The learned numbers of the model with this variant."""
    return parameters(model.with_variant(parse(variant))).total


def total_figure(model: Model, variant: str) -> Figure:
    """The same in millions."""
    count = total(model, variant)
    return Figure(count / 1e6, count / 1e6, count / 1e6, millions(count))


def kept(model: Model, variant: str) -> float:
    """The share of the cache of `q,k,v` that the variant keeps of each token."""
    return _cache(model, variant) / _cache(model, "q,k,v")


def cache_bytes(model: Model, variant: str, tokens: int) -> int:
    """Bytes that the cache holds after this many tokens of one sequence, 2 bytes a value."""
    return tokens * _cache(model, variant)


def saved_parameters(model: Model, variant: str) -> float:
    """The share of the learned numbers of `q,k,v` that the variant does without."""
    return 1 - total(model, variant) / total(model, "q,k,v")


def saved_outside_embedding(model: Model, variant: str) -> float:
    """The same, as a share of what is not embedding."""
    whole = parameters(model)
    saved = whole.total - total(model, variant)
    return saved / (whole.total - whole.embedding)


def saved_flops(model: Model, variant: str, tokens: int) -> float:
    """The share of the matrix products of `q,k,v` that the variant does without."""
    return 1 - flops(model.with_variant(parse(variant)), tokens) / flops(model, tokens)


def block_speedup(model: Model, variant: str, tokens: int) -> float:
    """How many times fewer multiply-accumulates the blocks take, with causal scores at half.

    What comes after the blocks is left out, and of the scores only the half that a causal mask
    leaves is counted: both make the figure larger.
    """
    return _block_macs(model, tokens) / _block_macs(model.with_variant(parse(variant)), tokens)


def attention_speedup(model: Model, variant: str, tokens: int) -> float:
    """The same for the attention layers alone, with their output projection."""
    return _attention(model, tokens) / _attention(model.with_variant(parse(variant)), tokens)


def _cache(model: Model, variant: str) -> int:
    per_token = cache_bytes_per_token(model.with_variant(parse(variant)))
    assert per_token is not None
    return per_token


def _block_macs(model: Model, tokens: int) -> float:
    widths = sum(
        block.feed_forward.width
        for block in model.blocks
        if isinstance(block.feed_forward, FeedForward)
    )
    return _attention(model, tokens) + 2 * tokens * model.geometry.d_model * widths


def _attention(model: Model, tokens: int) -> float:
    full = sum(attention_macs(plan, tokens) for plan in model.plans if plan)
    # Only the scores and the weighted sums grow with the square: f(2n) − 2·f(n) is twice those.
    products = (macs(model, 2 * tokens) - 2 * macs(model, tokens)) / 2
    return full - products / 2
