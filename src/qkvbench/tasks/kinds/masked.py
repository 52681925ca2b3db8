"""Masked language modelling: predict the tokens of a text that are masked. arXiv:1810.04805."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions
from qkvbench.data.cache import identity_of, prepare_once
from qkvbench.data.tokenizer import Fitted, Tokenizer
from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Rotary, Tokens, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.reviews import BYTE_PAIRS, all_reviews, read_length, review_tokenizer
from qkvbench.tasks.kinds.splits import ENDS, Items, UnmaskedTexts, save_splits
from qkvbench.tasks.kinds.texts import folder_name, pad

# The share of tokens that are targets; of these, the shares that the mask token and that random
# tokens replace. The rest stays as it is. arXiv:1810.04805, section 3.1.
TARGET_SHARE = 0.15
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
LENGTH = 64
# A shorter piece says too little about its masked tokens.
MIN_LENGTH = 8
# Texts of each split that are read.
TEXTS = {"test": 800, "validation": 100, "train": 12_000}


def masked_reviews(training: Training, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task of predicting the masked tokens of a review.

    The mask token is the separator of texts, which no text contains: so the embedding has the same
    size in the tasks that are initialized from this one.
    """
    length = read_length(LENGTH, tokenizer)
    vocabulary = tokenizer.vocabulary
    return Task(
        about=f"Predict the masked ones of {length} tokens of a film review.",
        benchmark="pretraining",
        tier="packaged",
        version=1,
        # If all tokens are equally likely.
        metric=Metric("bits_per_token", "bits", "lower", chance=math.log2(vocabulary)),
        tokens=length,
        model=transformer(
            "masked",
            Encoder(Tokens(vocabulary), vocabulary, "each position"),
            layers=2,
            d_model=64,
            heads=4,
            position=Rotary(),
            init=Init(embedding_std=0.1, position_std=0.1),
        ),
        training=training,
        load=partial(load, length, tokenizer),
        score=score,
        with_tokenizer=partial(masked_reviews, training),
        augment=partial(augment, tokenizer),
    )


def score(outcome: Predictions) -> dict[str, float]:
    """Bits per masked token, and the share of them whose likeliest token is right."""
    found = accuracy(outcome)
    return {"bits_per_token": found["loss"] / math.log(2), **found}


def load(length: int, tokenizer: Tokenizer) -> Data:
    """Pieces of reviews; those of validation and test have fixed masks."""
    folder = splits_folder(length, tokenizer)
    parts = {
        name: UnmaskedTexts(
            np.load(folder / f"{name}.inputs.npy", mmap_mode="r"),
            np.load(folder / f"{name}.lengths.npy", mmap_mode="r"),
        )
        for name in ENDS
    }
    validation, test = (
        _mask_once(name, parts[name], tokenizer) for name in ENDS if name != "train"
    )
    return Data(parts["train"], validation, test, identity_of(folder))


def augment(tokenizer: Tokenizer, batch: Batch, rng: np.random.Generator) -> Batch:
    """The batch with new masks; its targets hold the tokens."""
    tokens, read = batch.targets, batch.targets != IGNORE_INDEX
    asked = _choose_targets(read, rng.random(tokens.shape))
    how = rng.random(tokens.shape)
    separator = tokenizer.separator
    # Any token but the separator, which is the mask.
    others = rng.integers(tokenizer.vocabulary - 1, size=tokens.shape)
    others += others >= separator
    inputs = np.where(read, tokens, separator)
    inputs = np.where(asked & (how < MASK_SHARE), separator, inputs)
    inputs = np.where(
        asked & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE), others, inputs
    )
    return replace(batch, inputs=inputs, targets=np.where(asked, tokens, IGNORE_INDEX))


def splits_folder(length: int, tokenizer: Tokenizer) -> Path:
    """The folder of the prepared pieces, made on first use."""
    name = folder_name("masked-reviews", tokenizer, length)
    return prepare_once(name, partial(review_tokenizer, tokenizer), partial(_save_pieces, length))


def _save_pieces(length: int, tokens: Fitted, folder: Path) -> None:
    """Save the distinct pieces, each in the first of test, validation and training."""
    seen: set[bytes] = set()
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ENDS:
        texts = tokens.encode(all_reviews(name)[: TEXTS[name]])
        rows, lengths = pad(_pieces(texts, length), tokens.separator, length)
        first = [row.tobytes() not in seen and not seen.add(row.tobytes()) for row in rows]
        found[name] = {"inputs": rows[first], "lengths": lengths[first]}
    save_splits(folder, found)


def _pieces(
    texts: Iterable[Integer[np.ndarray, " tokens"]], length: int
) -> Iterator[Integer[np.ndarray, " piece"]]:
    """The pieces of each text, without a last one that is too short."""
    for text in texts:
        for begin in range(0, len(text), length):
            if len(piece := text[begin : begin + length]) >= MIN_LENGTH:
                yield piece


def _mask_once(name: str, pieces: UnmaskedTexts, tokenizer: Tokenizer) -> Items:
    """The pieces with masks that depend on the split's name alone."""
    whole = pieces.batch(np.arange(len(pieces)))
    masked = augment(tokenizer, whole, generator(0, "masks", name))
    return Items(masked.inputs, masked.targets, masked.lengths)


def _choose_targets(
    read: Bool[np.ndarray, "items positions"], rng: Float[np.ndarray, "items positions"]
) -> Bool[np.ndarray, "items positions"]:
    """A mask of the tokens that are targets: the share of each item, at least one."""
    order = np.where(read, rng, 2.0).argsort(axis=1).argsort(axis=1)
    counts: Int[np.ndarray, " items"] = np.rint(TARGET_SHARE * read.sum(axis=1)).astype(np.int64)
    return order < np.maximum(1, counts)[:, None]
