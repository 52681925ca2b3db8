"""Translate texts of interfaces from English into German: short, human-made, no news.

In place of WMT14's news these are the catalogues of three programs, translated by people.
"""

import re
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from qkvbench.data.cache import prepare_once
from qkvbench.data.catalogues import Pair, interface_pairs
from qkvbench.data.tokenizer import PREPARATION, BytePairs, Tokenizer, fit
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.translating import (
    Source,
    read_length,
    save_pairs,
    save_tokenizer,
    translating,
)

# Longer pairs are left out: three quarters stay, and a step is short.
LENGTH = 16
# Shares of the distinct English texts, and the number of pairs that are scored.
SHARES = {"test": 0.06, "validation": 0.03, "train": 0.91}
SCORED = {"test": 1000, "validation": 500}


def splits_folder(tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = f"translation-{tokenizer.name}-{read_length(LENGTH, tokenizer)}-{PREPARATION}"
    return prepare_once(name, interface_pairs, partial(prepare, tokenizer))


def split_pairs(pairs: dict[Pair, int]) -> dict[str, list[Pair]]:
    """The pairs of each split, in the order of the hashes of their normalized English text.

    Pairs whose English differs only in case, punctuation, blanks or numbers are in one split. In
    validation and test one of them is kept, the most frequent.
    """
    same: dict[bytes, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        same.setdefault(sha256(normalize(pair[0]).encode()).digest(), []).append(pair)
    splits: dict[str, list[Pair]] = {name: [] for name in SHARES}
    ends = np.cumsum(list(SHARES.values()))
    for digest in sorted(same):
        place = int.from_bytes(digest[:8]) / 2**64
        name = list(SHARES)[int(np.searchsorted(ends[:-1], place, side="right"))]
        splits[name] += same[digest] if name == "train" else same[digest][:1]
    return splits


def normalize(text: str) -> str:
    """A text without case, punctuation and blanks, each number as a zero.

    A text of punctuation alone stays as it is.
    """
    letters = re.sub(r"[\W_]+", "", re.sub(r"\d+", "0", text.casefold()))
    return letters or text


def prepare(tokenizer: Tokenizer, pairs: dict[Pair, int], folder: Path) -> None:
    """Split the pairs, fit the tokenizer to the training ones in both languages, save all."""
    splits = split_pairs(pairs)
    learned = fit(tokenizer, [text for pair in splits["train"] for text in pair])
    length = read_length(LENGTH, tokenizer)
    for name, parts in splits.items():
        save_pairs(name, parts, learned, length, folder, SCORED.get(name))
    save_tokenizer(learned, folder)


TASK = translating(
    Source(
        about="Translate short texts of interfaces from English into German; not WMT14's news.",
        tier="packaged",
        version=1,
        model="translation",
        length=LENGTH,
        training=Training(
            steps=1000, batch=64, learning_rate=5e-3, warmup=100, evaluations=5, smoothing=0.1
        ),
        folder=splits_folder,
    ),
    BytePairs(2048),
)
