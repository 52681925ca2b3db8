"""Two towers on pictures and names: retrieve the name of a picture, and the picture of a name."""

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
# Tokens of a name that are read; each has about three bytes.
LENGTH = 16
BYTES_A_TOKEN = 3
WIDTH = 64


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures as inputs, names as second inputs; the target of each is the number of the other."""

    pixels: UInt8[np.ndarray, "items 32 32 3"]
    tokens: UInt16[np.ndarray, "items length"]
    lengths: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pixels)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The pairs with these numbers; targets number them within the batch."""
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
        # After a thousand training concepts, recall at 1 is too small to tell arms apart.
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
    """Recall at 1 and at 5: of both directions together, and of each.

    Predictions with one target have the first direction only.
    """
    found = {f"recall_at_{count}": top(outcome, count) for count in (1, 5)}
    ways = ("name_of_picture", "picture_of_name")
    for way, ranks in zip(ways, outcome.ranks.T, strict=False):
        found |= {f"{way}_at_{count}": float((ranks < count).mean()) for count in (1, 5)}
    return found | {"loss": float(outcome.loss.mean())}


def _load(language: Language, tokenizer: Tokenizer, length: int) -> Data:
    return load(
        language, partial(_fit_pairs, tokenizer, length), f"{tokenizer.name} {PREPARATION} {length}"
    )


def _fit_pairs(tokenizer: Tokenizer, length: int, training: Sequence[str]) -> MakeSplit:
    learned = fit(tokenizer, training)

    def pairs(pixels: UInt8[np.ndarray, "items 32 32 3"], names: Sequence[str]) -> Pairs:
        return Pairs(pixels, *pad(learned.encode(names), learned.separator, length))

    return pairs
