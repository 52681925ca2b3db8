"""Translate texts of interfaces from English into German: short, human-made, no news.

In place of WMT14's news these are the catalogues of three programs, translated by people. The
decoder reads the German text so far and attends to the English one.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from qkvbench.data.batch import IGNORE_INDEX, Predictions, Search
from qkvbench.data.cache import prepare_once
from qkvbench.data.catalogues import Pair, interface_pairs
from qkvbench.data.tokenizer import PREPARATION, BytePairs, Bytes, Tokenizer, fit, restore
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Model, Rotary, Tokens, transformer, with_source
from qkvbench.tasks import Data, GenerationEval, Metric, Task
from qkvbench.tasks.kinds.generation_scores import bleu_and_chrf, on_one_line
from qkvbench.tasks.kinds.splits import load_splits, save_splits

BYTE_PAIRS = BytePairs(2048)
# Longer pairs are left out: three quarters stay, and a step is short.
LENGTH = 16
# Bytes per token, about.
BYTES_A_TOKEN = 4
# Shares of the distinct English texts, and the number of pairs that are scored.
SHARES = {"test": 0.06, "validation": 0.03, "train": 0.91}
SCORED = {"test": 1000, "validation": 500}


def translation(tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task with both languages in these tokens."""
    separator = _separator(tokenizer)
    return Task(
        about="Translate short texts of interfaces from English into German; not WMT14's news.",
        benchmark="wmt14",
        tier="packaged",
        version=1,
        # By chance no four words in a row are right; with sacreBLEU's smoothing BLEU is near 0.
        metric=Metric("bleu", "BLEU", "higher", chance=0.0),
        tokens=_length(tokenizer),
        second_tokens=_length(tokenizer),
        model=_model(tokenizer),
        training=Training(
            steps=1000, batch=64, learning_rate=5e-3, warmup=100, evaluations=5, smoothing=0.1
        ),
        load=partial(load, tokenizer),
        score=partial(score, tokenizer),
        with_tokenizer=translation,
        generation=GenerationEval(
            search=Search(begin=separator, end=separator, longest=_length(tokenizer)),
            decode=partial(decode, tokenizer),
            sources=partial(lines, tokenizer, "english"),
            references=partial(lines, tokenizer, "german"),
            score=bleu_and_chrf,
        ),
    )


def _model(tokenizer: Tokenizer) -> Model:
    """An encoder-decoder with as many layers for the English text as for the German one."""
    decoder = transformer(
        "translation",
        Decoder(tokenizer.vocabulary),
        layers=2,
        d_model=96,
        heads=4,
        position=Rotary(),
        init=Init(embedding_std=0.1, position_std=0.1),
    )
    return with_source(decoder, Tokens(tokenizer.vocabulary), Rotary())


def load(tokenizer: Tokenizer) -> Data:
    """The prepared splits: German inputs and next tokens, and English as a second input.

    Raises DataUnavailableError if the catalogues are not available.
    """
    return load_splits(splits_folder(tokenizer))


def score(tokenizer: Tokenizer, outcome: Predictions) -> dict[str, float]:
    """Bits per byte of the German texts with their ends, and the loss per token in nats."""
    scored = outcome.targets != IGNORE_INDEX
    loss = float(outcome.loss[scored].mean())
    bytes_a_token = float(_token_bytes(splits_folder(tokenizer))[outcome.targets[scored]].mean())
    return {"bits_per_byte": loss / bytes_a_token / math.log(2), "loss": loss}


def decode(tokenizer: Tokenizer, written: Sequence[Integer[np.ndarray, " _tokens"]]) -> list[str]:
    """The texts of these tokens."""
    learned = restore(tokenizer, (splits_folder(tokenizer) / "tokenizer.json").read_text())
    return [on_one_line(learned.decode(tokens)) for tokens in written]


def lines(tokenizer: Tokenizer, language: str) -> list[str]:
    """The texts of the test split in one of the two languages."""
    return (splits_folder(tokenizer) / f"test.{language}.txt").read_text().splitlines()


def splits_folder(tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = f"translation-{tokenizer.name}-{_length(tokenizer)}-{PREPARATION}"
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
    length = _length(tokenizer)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, parts in splits.items():
        english, german = ([*learned.encode(texts)] for texts in zip(*parts, strict=True))
        # The German text has one token more: its beginning, or its end.
        short = [
            number
            for number in range(len(parts))
            if len(english[number]) <= length and len(german[number]) < length
        ][: SCORED.get(name)]
        arrays[name] = _arrays(
            [english[number] for number in short],
            [german[number] for number in short],
            learned.separator,
            length,
        )
        for side, language in enumerate(("english", "german")):
            texts = "".join(f"{parts[number][side]}\n" for number in short)
            (folder / f"{name}.{language}.txt").write_text(texts)
    save_splits(folder, arrays)
    np.save(folder / "token_bytes.npy", learned.token_bytes)
    (folder / "tokenizer.json").write_text(learned.written)


def _arrays(
    english: Sequence[Integer[np.ndarray, " _tokens"]],
    german: Sequence[Integer[np.ndarray, " _tokens"]],
    separator: int,
    length: int,
) -> dict[str, np.ndarray]:
    """The arrays of a split: separators begin and end each German text, and pad rows."""
    inputs = np.full((len(german), length), separator, np.uint16)
    targets = np.full((len(german), length), IGNORE_INDEX, np.int64)
    second = np.full((len(english), length), separator, np.uint16)
    for row, (source, text) in enumerate(zip(english, german, strict=True)):
        second[row, : len(source)] = source
        inputs[row, 1 : len(text) + 1] = text
        targets[row, : len(text) + 1] = [*text, separator]
    return {
        "inputs": inputs,
        "targets": targets,
        "lengths": np.array([len(text) + 1 for text in german], np.int64),
        "second": second,
        "second_lengths": np.array([len(source) for source in english], np.int64),
    }


# Each evaluation needs it.
@lru_cache(maxsize=8)
def _token_bytes(folder: Path) -> Int[np.ndarray, " vocabulary"]:
    return np.load(folder / "token_bytes.npy")


def _length(tokenizer: Tokenizer) -> int:
    """The most tokens of a text, its end included."""
    return LENGTH * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)


def _separator(tokenizer: Tokenizer) -> int:
    """The token that no text contains."""
    return 0 if isinstance(tokenizer, Bytes) else tokenizer.vocabulary - 1


TASK = translation()
