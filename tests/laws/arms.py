"""What the laws range over, and how they draw weights. Sizes are small, odd and different."""

from dataclasses import replace

import numpy as np
import pytest

from qkvbench.model import (
    Alibi,
    Decoder,
    Encoder,
    Init,
    Learned,
    NoPosition,
    Rotary,
    RotaryWithInverse,
    Sinusoidal,
    Tokens,
    transformer,
)
from qkvbench.variant import FEATURES, parse, resolve, sized, write
from qkvbench.variant import every_variant as all_variants
from qkvbench.variant.catalogue import CATALOGUE

SIZE = sized(18, 3)  # head_dim 6: even, for rotary
TIME = 7
POSITIONS = [
    NoPosition(),
    Learned(11),
    Sinusoidal(),
    Rotary(),
    Rotary(share=1 / 3),
    RotaryWithInverse(),
    RotaryWithInverse(share=2 / 3),
    Alibi(),
]
# Every suffix alone, and three together.
SUFFIXED = ["", "+qknorm", "+qkvnorm", "+2d", "++", "-diag", "+qknorm++-diag", "+qkvnorm+2d-diag"]


def _shared_heads():
    """Every variant, and where it can be built, with fewer key/value heads."""
    for variant in all_variants():
        yield variant
        shared = replace(variant, kv_heads=1)
        try:
            resolve(shared, SIZE)
        except ValueError:
            continue
        yield shared


# Latents that both need, or one of them, or that are turned by a learned rotation.
LATENT = [
    parse(f"q,{rest}")
    for rest in (
        "k=L(5),v=L(5)",
        "k=v=L(5)",
        "k=L(5),v=R(k)",
        "k=L(5),v",
        "k,v=L(5)",
        "k=L(5),v=L(5)/1",
    )
]
PLANNED = [*_shared_heads(), *LATENT]
# The catalogue's own head sharing asks for heads that 2 divides.
CATALOGUED = [entry.variant for entry in CATALOGUE]
EVEN = sized(24, 4)

every_variant = pytest.mark.parametrize("variant", PLANNED, ids=write)
every_catalogued = pytest.mark.parametrize("variant", CATALOGUED, ids=write)
# Where each variant is a program that takes seconds to compile, these are tried each time (heads
# that are shared by a tie, learned rotations, latents), and the others nightly.
FEW = ["q,k=v/1", "q,k=R(q),v=R(q)", "q,k=L(16),v=L(16)"]
some_catalogued = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(each, marks=() if write(each) in FEW else pytest.mark.nightly)
        for each in CATALOGUED
    ],
    ids=write,
)
every_position = pytest.mark.parametrize(
    "position", POSITIONS, ids=lambda one: f"{one.kind}{getattr(one, 'share', '')}"
)
every_suffix = pytest.mark.parametrize("suffix", SUFFIXED)


def tried_each_time(place, sizes):
    """Whether a cell of a grid is on a diagonal: every fourth, or more where a side is shorter.

    Each variant meets some of the positions, and each position some of the variants.
    """
    return sum(place) % min(4, *sizes) == 0


def suffixed(variant, suffix):
    """The variant with what the suffix says of the scores, and nothing else of them."""
    return replace(variant, scores=parse(f"q,k,v{suffix}").scores)


def drawn(plan, seed=0):
    """Weights for a plan, in fp64, large enough that nothing is nearly linear."""
    rng = np.random.default_rng(seed)
    size = plan.geometry
    weights = {}
    for name, rows in plan.matrix_rows.items():
        weights[f"{name}.weight"] = rng.normal(size=(rows, size.d_model)) / 2
        weights[f"{name}.bias"] = rng.normal(size=rows)
    for role, heads in plan.rotated.items():
        numbers = size.head_dim * (size.head_dim - 1) // 2
        weights[f"{role}.rotation"] = rng.normal(size=(heads, numbers))
    for role, (heads, rank) in plan.lifted.items():
        weights[f"{role}.up"] = rng.normal(size=(heads, size.head_dim, rank)) / 2
    for role in plan.scaled:
        weights[f"{role}.scale"] = rng.normal(size=size.head_dim)
    if plan.scores.correction:
        weights["correction.temperature"] = rng.normal(size=1)
        weights["correction.features"] = rng.normal(size=FEATURES)
    weights["o.weight"] = rng.normal(size=(size.d_model, size.heads * size.head_dim))
    weights["o.bias"] = rng.normal(size=size.d_model)
    return weights


def stream(time=TIME, d_model=SIZE.d_model, seed=1):
    """A stream of `time` tokens."""
    return np.random.default_rng(seed).normal(size=(time, d_model))


# Every way in which an encoder tells what it found: what it predicts, and how it pools.
TOLD = [
    ("each position", "mean"),
    ("the whole", "mean"),
    ("the whole", "class token"),
    ("which position", "mean"),
]
every_told = pytest.mark.parametrize(("predicts", "pooling"), TOLD, ids=" ".join)


WORDS = Tokens(13)


def encoder(variant, predicts, pooling, inputs=WORDS, position=NoPosition(), classes=TIME):
    """A small encoder spec with this variant in every layer."""
    model = transformer(
        "law",
        Encoder(inputs, classes, predicts, pooling=pooling),
        layers=2,
        d_model=EVEN.d_model,
        heads=EVEN.heads,
        position=position,
        init=Init(embedding_std=0.5, position_std=0.5),
    )
    return model.with_variant(parse(variant) if isinstance(variant, str) else variant)


def decoder(variant, position=NoPosition(), size=EVEN, layers=2, vocabulary=13):
    """A small decoder spec with this variant in every layer."""
    model = transformer(
        "law",
        Decoder(vocabulary),
        layers=layers,
        d_model=size.d_model,
        heads=size.heads,
        position=position,
        init=Init(embedding_std=0.5, position_std=0.5),
        feed_forward=29,
    )
    return model.with_variant(parse(variant) if isinstance(variant, str) else variant)
