"""Name a picture byte by byte: a decoder reads the name so far and attends to the picture."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Integer, UInt8

from qkvbench.data.batch import IGNORE_INDEX, Predictions, Search
from qkvbench.data.tokenizer import BYTES
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Learned, Rotary, Vectors, transformer, with_source
from qkvbench.tasks import GenerationEval, Metric, Scored, Task
from qkvbench.tasks.kinds.emoji import (
    FEATURES,
    SQUARES,
    MakeSplit,
    all_emoji,
    as_inputs,
    load,
    shift_second_input,
    split_by_concept,
)
from qkvbench.tasks.kinds.splits import Items

# Bytes of the longest name, with the byte that begins it.
LENGTH = 43
# The byte that begins a name and ends it.
EDGE = 0


def make_captions(_training: Sequence[str]) -> MakeSplit:
    """The function that makes a split; bytes need no training names."""

    def captions(pixels: UInt8[np.ndarray, "items 32 32 3"], names: Sequence[str]) -> Items:
        rows = np.full((len(names), LENGTH + 1), EDGE)
        targets = np.full((len(names), LENGTH), IGNORE_INDEX)
        for row, right, name in zip(rows, targets, names, strict=True):
            text = np.frombuffer(name.encode(), np.uint8)
            row[1 : len(text) + 1] = text
            right[: len(text) + 1] = row[1 : len(text) + 2]
        return Items(rows[:, :-1], targets, second=as_inputs(pixels))

    return captions


def score(outcome: Predictions) -> dict[str, float]:
    """Bits per byte of the names with their ends, and the loss per byte in nats."""
    loss = float(outcome.loss[outcome.targets != IGNORE_INDEX].mean())
    return {"bits_per_byte": loss / math.log(2), "loss": loss}


def decode(written: Sequence[Integer[np.ndarray, " _tokens"]]) -> list[str]:
    """The texts of these bytes; invalid UTF-8 becomes U+FFFD."""
    return [bytes(tokens.tolist()).decode(errors="replace") for tokens in written]


def test_texts(names: Literal["english", "concepts"]) -> list[str]:
    """The names of the test split's pictures, or their concepts."""
    found = all_emoji()
    return [
        getattr(found, names)[n] for n in split_by_concept(found.concepts, found.english)["test"]
    ]


def exact_match(texts: Sequence[str], references: Sequence[str]) -> Scored:
    """The share of generated texts that equal the name."""
    same = [text == name for text, name in zip(texts, references, strict=True)]
    return Scored({"exact_match": sum(same) / len(same)}, {"exact_match": "equal texts"})


TASK = Task(
    about="Write the English name of an emoji whose concept was never seen, byte by byte.",
    benchmark="clip",
    tier="packaged",
    version=1,
    metric=Metric("bits_per_byte", "bits", "lower", chance=math.log2(BYTES)),
    tokens=LENGTH,
    second_tokens=SQUARES,
    model=with_source(
        transformer(
            "captioning",
            Decoder(BYTES),
            layers=2,
            d_model=64,
            heads=4,
            position=Rotary(),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        Vectors(FEATURES),
        Learned(SQUARES),
    ),
    training=Training(
        steps=300, batch=64, learning_rate=2e-3, warmup=30, weight_decay=1.0, dropout=0.3
    ),
    load=partial(load, "english", make_captions, f"bytes {LENGTH}"),
    score=score,
    augment=shift_second_input,
    generation=GenerationEval(
        search=Search(begin=EDGE, end=EDGE, longest=LENGTH, beams=1),
        decode=decode,
        sources=partial(test_texts, "concepts"),
        references=partial(test_texts, "english"),
        score=exact_match,
    ),
)
