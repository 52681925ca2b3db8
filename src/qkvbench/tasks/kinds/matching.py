"""Two towers on pictures and names: which name is a picture's, and which picture a name's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int, UInt8, UInt16

from qkvbench.data.batch import Batch, Predictions, Sequences
from qkvbench.data.tokenizer import PREPARATION, BytePairs, Bytes, Tokenizer, fit
from qkvbench.experiment import Training
from qkvbench.model import (
    Encoder,
    Init,
    Learned,
    Rotary,
    Tokens,
    Vectors,
    transformer,
    with_tower,
)
from qkvbench.tasks import Data, Metric, Task, top
from qkvbench.tasks.kinds.emoji import (
    FEATURES,
    SQUARES,
    TEST,
    Language,
    MakeSplit,
    as_inputs,
    load,
    shift_images,
)
from qkvbench.tasks.kinds.texts import pad

BYTE_PAIRS = BytePairs(512)
# Tokens of a name that are read; of bytes there are about three for each.
LENGTH = 16
BYTES_A_TOKEN = 3
WIDTH = 64


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures as inputs and names beside; of each, the number of what belongs to it is right."""

    pixels: UInt8[np.ndarray, "items 32 32 3"]
    tokens: UInt16[np.ndarray, "items length"]
    lengths: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pixels)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The pairs with these numbers; within the batch they are numbered anew."""
        numbers = np.arange(len(indices))
        return Batch(
            as_inputs(self.pixels[indices]),
            np.stack([numbers, numbers], axis=1),
            second=Sequences(self.tokens[indices].astype(np.int64), self.lengths[indices]),
        )


def matching(language: Language, about: str, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task of finding the name of a picture, and the picture of a name, among the test's."""
    length = LENGTH * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)
    pictures = transformer(
        "pictures-and-names",
        Encoder(Vectors(FEATURES), classes=1, predicts="the whole"),
        layers=2,
        d_model=64,
        heads=4,
        position=Learned(SQUARES),
        init=Init(embedding_std=0.1, position_std=0.5),
    )
    return Task(
        about=about,
        benchmark="clip",
        tier="packaged",
        version=1,
        # Who learns from a thousand concepts finds a new one first too seldom to tell arms apart.
        metric=Metric("recall_at_5", "share", "higher", chance=5 / TEST),
        tokens=SQUARES,
        second_tokens=length,
        model=with_tower(pictures, Tokens(tokenizer.vocabulary), Rotary(), WIDTH),
        training=Training(
            steps=200,
            batch=128,
            learning_rate=2e-3,
            warmup=30,
            weight_decay=1.0,
            dropout=0.2,
            evaluations=5,
        ),
        load=partial(_load, language, tokenizer, length),
        score=score,
        with_tokenizer=partial(matching, language, about),
        augment=shift_images,
    )


def score(outcome: Predictions) -> dict[str, float]:
    """How often the right one is the first, and among the first five: of both ways, and of each.

    An outcome of one place says the one way only.
    """
    found = {f"recall_at_{count}": top(outcome, count) for count in (1, 5)}
    for place, way in enumerate(("name_of_picture", "picture_of_name")[: outcome.ranks.shape[1]]):
        ranks = outcome.ranks[:, place]
        found |= {f"{way}_at_{count}": float((ranks < count).mean()) for count in (1, 5)}
    return found | {"loss": float(outcome.loss.mean())}


def _load(language: Language, tokenizer: Tokenizer, length: int) -> Data:
    made = partial(_made, tokenizer, length)
    return load(language, made, f"{tokenizer.name} {PREPARATION} {length}")


def _made(tokenizer: Tokenizer, length: int, training: Sequence[str]) -> MakeSplit:
    learned = fit(tokenizer, training)

    def pairs(pixels: UInt8[np.ndarray, "items 32 32 3"], names: Sequence[str]) -> Pairs:
        return Pairs(pixels, *pad(learned.encode(names), learned.separator, length))

    return pairs
