"""The models of the sources, and how much of them removing projections can save."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

from qkvbench.claims.kit.figure import Figure, exact_figure
from qkvbench.cost import attention_macs, cache_bytes_per_token, flops, macs, parameters
from qkvbench.cost.roofline import Conditions, bound, work
from qkvbench.hardware import find
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

_INIT = Init(embedding_std=0.02, position_std=0.02, weight_std=0.02)


def gpt2_small() -> Model:
    """The article's 125M model, which can only be GPT-2 small with its vocabulary and length."""
    return transformer(
        "gpt2-small",
        Decoder(vocabulary=50_257, tied=True),
        layers=12,
        d_model=768,
        heads=12,
        position=Learned(1024),
        init=_INIT,
    )


# The study's language models.
study_300m, study_1_2b = PRESETS["gpt-300m"], PRESETS["gpt-1.2b"]


def study_synthetic() -> tuple[Model, Model]:
    """The smallest and the largest encoder of the study's synthetic tasks."""
    return _synthetic(32, 2, length=16), _synthetic(256, 4, length=128)


def study_keyless() -> Model:
    """The model of the authors' later runs on recall: four heads, two layers of width 128."""
    return _synthetic(128, 2, length=16)


def _synthetic(d_model: int, layers: int, *, length: int) -> Model:
    return transformer(
        "synthetic",
        Encoder(Tokens(10), 10, "each position"),
        layers=layers,
        d_model=d_model,
        heads=4,
        position=Learned(length),
        init=_INIT,
    )


# Many claims ask the same of the same few models.
@lru_cache(maxsize=1024)
def total_parameters(model: Model, variant: str) -> int:
    """Parameters of the model with this variant."""
    return parameters(model.with_variant(parse(variant))).total


def total_figure(model: Model, variant: str) -> Figure:
    """Parameters of the model with this variant, in millions."""
    count = total_parameters(model, variant)
    return exact_figure(count / 1e6, f"{count / 1e6:.2f} M")


def cache_ratio(model: Model, variant: str) -> float:
    """Cache bytes per token of the variant, over those of `q,k,v`."""
    return _cache(model, variant) / _cache(model, "q,k,v")


def cache_bytes(model: Model, variant: str, tokens: int) -> int:
    """Cache bytes of one sequence of this many tokens, 2 bytes a value."""
    return tokens * _cache(model, variant)


def saved_parameters(model: Model, variant: str) -> float:
    """The share of the parameters of `q,k,v` that the variant saves."""
    return 1 - total_parameters(model, variant) / total_parameters(model, "q,k,v")


def saved_outside_embedding(model: Model, variant: str) -> float:
    """The parameters that the variant saves, as a share of those outside the embedding."""
    whole = parameters(model)
    saved = whole.total - total_parameters(model, variant)
    return saved / (whole.total - whole.embedding)


def saved_flops(model: Model, variant: str, tokens: int) -> float:
    """The share of the operations in matrix products of `q,k,v` that the variant saves."""
    return 1 - flops(model.with_variant(parse(variant)), tokens) / flops(model, tokens)


def block_speedup(model: Model, variant: str, tokens: int) -> float:
    """Multiply-accumulates in the blocks of `q,k,v` over those of the variant: an upper bound.

    Operations after the blocks, and the half of the scores that a causal mask removes, are not
    counted; both omissions make the ratio larger.
    """
    return _block_macs(model, tokens) / _block_macs(model.with_variant(parse(variant)), tokens)


def share_left(model: Model, variant: str) -> float:
    """The smallest share that any part of inference keeps: a bound on its time and its memory.

    The parts are operations, weights, cache, and the tensors of an attention layer, of which the
    stream, its norm and the layer's output are there whatever the variant.
    """
    whole, left = total_parameters(model, "q,k,v"), total_parameters(model, variant)
    projections = 3 * (1 - (whole - left) / (whole - total_parameters(model, "q=k=v=x")))
    return min(
        1 - saved_flops(model, variant, 1),
        left / whole,
        cache_ratio(model, variant),
        (3 + projections) / 6,
    )


def saved_decode_time(
    model: Model, variant: str, devices: Sequence[str], contexts: Sequence[int]
) -> tuple[float, float]:
    """The smallest and the largest share that the least time of a decode step falls by.

    By data sheets, for 1 and for 16 sequences, in two bytes a number.
    """
    saved = []
    other = model.with_variant(parse(variant))
    for device in map(find, devices):
        precision: Literal["bf16", "fp16"]
        precision = "bf16" if "bf16" in device.flops_per_s else "fp16"
        for tokens, batch in product(contexts, (1, 16)):
            conditions = Conditions(tokens, batch, precision, precision, precision)
            least, less = (
                bound(work(each, "decode", conditions), device, precision).seconds
                for each in (model, other)
            )
            saved.append(1 - less / least)
    return min(saved), max(saved)


def quadratic_speedup_tokens(model: Model, times: float, columns: int) -> int:
    """From how many tokens on a model whose tokens see `columns` others needs 1/times of the work.

    Matrix products of the blocks alone, without a causal mask.
    """
    d_model = model.geometry.d_model
    linear = _block_macs(model, 2) - _block_macs(model, 1)
    linear -= 3 * len(model.blocks) * d_model
    per_column = 2 * len(model.blocks) * d_model
    return round((times - 1) * linear / per_column + times * columns)


@lru_cache(maxsize=1024)
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
    return _attention_macs(model, tokens) + 2 * tokens * model.geometry.d_model * widths


def _attention_macs(model: Model, tokens: int) -> float:
    full = sum(attention_macs(plan, tokens) for plan in model.plans if plan)
    # Only the scores and the weighted sums grow with the square: f(2n) − 2·f(n) is twice those.
    products = (macs(model, 2 * tokens) - 2 * macs(model, tokens)) / 2
    return full - products / 2
