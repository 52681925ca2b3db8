"""Classification of texts: tokens cut to a length, padded at the end, one class for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer, UInt16

from qkvbench.data.hub import HubData
from qkvbench.data.tokenizer import PREPARATION, Fitted, Tokenizer, fit
from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Rotary, Tokens, transformer
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import ENDS, load_splits, save_splits, stratify


@dataclass(frozen=True)
class Source:
    """Labelled texts, read up to `length` tokens. `folder` gives their prepared splits."""

    about: str
    tier: Literal["packaged", "hub", "own"]
    benchmark: str
    version: int
    model: str
    classes: int
    chance: float
    length: int
    training: Training
    folder: Callable[[Tokenizer], Path]
    hub: HubData | None = None


@dataclass(frozen=True)
class Labelled:
    """Texts of one split, and the class of each."""

    texts: Sequence[str]
    labels: Sequence[int]


def text_classification(source: Source, tokenizer: Tokenizer) -> Task:
    """The task of naming the class of a text. The caller sets `with_tokenizer`."""
    return Task(
        about=source.about,
        benchmark=source.benchmark,
        tier=source.tier,
        version=source.version,
        metric=Metric("accuracy", "share", "higher", chance=source.chance),
        tokens=source.length,
        model=transformer(
            source.model,
            Encoder(Tokens(tokenizer.vocabulary), source.classes, "the whole"),
            layers=2,
            d_model=64,
            heads=4,
            position=Rotary(),
            # With 0.5, which is good for bytes, this model memorizes words of the training split.
            init=Init(embedding_std=0.1, position_std=0.1),
        ),
        training=source.training,
        load=partial(load, source, tokenizer),
        score=accuracy,
        hub=source.hub,
    )


def load(source: Source, tokenizer: Tokenizer) -> Data:
    """The prepared splits."""
    return load_splits(source.folder(tokenizer))


def folder_name(name: str, tokenizer: Tokenizer, length: int) -> str:
    """The name of the prepared splits in the cache."""
    return f"{name}-{tokenizer.name}-{length}-{PREPARATION}"


def prepare(
    texts: Sequence[str],
    labels: Sequence[int],
    tokenizer: Tokenizer,
    length: Callable[[int], int],
    folder: Path,
) -> None:
    """Split distinct texts by their hashes, fit the tokenizer to the training ones, save all.

    `length` maps the most tokens of a training text to the number that is read of each text.
    """
    splits = split_texts(texts, labels)
    training = splits["train"].texts
    learned = fit(tokenizer, training)
    longest = max(len(tokens) for tokens in learned.encode(training))
    save_tokens(splits, learned, length(longest), folder)


def split_texts(
    texts: Sequence[str], labels: Sequence[int], ends: Mapping[str, int] = ENDS
) -> dict[str, Labelled]:
    """The splits of distinct texts, by their hashes."""
    parts = stratify([text.encode() for text in texts], labels, ends)
    return {
        name: Labelled([texts[n] for n in numbers], [labels[n] for n in numbers])
        for name, numbers in parts.items()
    }


def save_tokens(splits: Mapping[str, Labelled], learned: Fitted, length: int, folder: Path) -> None:
    """Save the first tokens of each text.

    Texts with equal first tokens count once, in the first of test, validation and training.
    """
    seen: set[bytes] = set()
    kept: dict[str, dict[str, np.ndarray]] = {}
    for name in ENDS:
        tokens, lengths = pad(learned.encode(splits[name].texts), learned.separator, length)
        first = [row.tobytes() not in seen and not seen.add(row.tobytes()) for row in tokens]
        kept[name] = {
            "inputs": tokens[first],
            "targets": np.array(splits[name].labels, np.int64)[first, None],
            "lengths": lengths[first],
        }
    save_splits(folder, kept)


def pad(
    texts: Iterable[Integer[np.ndarray, " tokens"]], separator: int, length: int
) -> tuple[UInt16[np.ndarray, "items length"], Int[np.ndarray, " items"]]:
    """The first tokens of each text, padded with separators, and their number."""
    read = [tokens[:length] for tokens in texts]
    lengths = np.array([len(tokens) for tokens in read], np.int64)
    rows = np.full((len(read), length), separator, np.uint16)
    for row, tokens in zip(rows, read, strict=True):
        row[: len(tokens)] = tokens
    return rows, lengths
