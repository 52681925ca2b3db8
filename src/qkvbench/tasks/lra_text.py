"""Praise or blame, byte by byte: the Text task of Long Range Arena. arXiv:2011.04006.

The film reviews of IMDb in their published splits, read up to 4,000 bytes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from qkvbench.data.cache import prepare_once
from qkvbench.data.hub import HubData
from qkvbench.data.hub_rows import rows
from qkvbench.data.tokenizer import Bytes, Fitted, Tokenizer, fit
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.texts import (
    Labelled,
    Source,
    folder_name,
    save_tokens,
    split_texts,
    text_classification,
)

LENGTH = 4000
# A twentieth of the training split is scored on the way.
ENDS = {"validation": 5, "train": 100}
# Columns of the card: text, label (neg, pos).
IMDB = HubData(
    repository="stanfordnlp/imdb",
    revision="e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    files={split: f"plain_text/{split}-*.parquet" for split in ("train", "test")},
    columns=("text", "label"),
    # 25,000 reviews in each split, two bytes a token.
    prepared_bytes=50_000 * (2 * LENGTH + 16),
    licence="not stated",
)


def splits_folder(tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = folder_name(f"lra-text-{IMDB.revision[:8]}", tokenizer, LENGTH)
    return prepare_once(name, _read, partial(_prepare, fit(Bytes(), ())))


def _read() -> Mapping[str, dict[str, int]]:
    return {split: {row["text"]: row["label"] for row in rows(IMDB, split)} for split in IMDB.files}


def _prepare(tokens: Fitted, found: Mapping[str, dict[str, int]], folder: Path) -> None:
    test = found["test"]
    own = {text: label for text, label in found["train"].items() if text not in test}
    splits = split_texts(list(own), list(own.values()), ENDS)
    labelled = Labelled(list(test), list(test.values()))
    save_tokens({**splits, "test": labelled}, tokens, LENGTH, folder)


TASK = text_classification(
    Source(
        about="Tell praise from blame in 4,000 bytes of a review (LRA; not yet run on the real "
        "data).",
        tier="hub",
        benchmark="long",
        version=1,
        model="lra-text",
        classes=2,
        chance=0.5,
        length=LENGTH,
        training=Training(steps=20_000, batch=32, learning_rate=1e-3, warmup=1000, evaluations=10),
        folder=splits_folder,
        hub=IMDB,
    ),
    Bytes(),
)
