"""Translation from English into German: the decoder reads the German text so far, and attends.

A pair with a text of more tokens than are read is left out.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from qkvbench.data.batch import IGNORE_INDEX, Predictions, Search
from qkvbench.data.growing_array import GrowingArray
from qkvbench.data.hub import HubData
from qkvbench.data.tokenizer import BytePairs, Bytes, Fitted, Tokenizer, restore
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Model, Rotary, Tokens, transformer, with_source
from qkvbench.tasks import Data, GenerationEval, Metric, Task
from qkvbench.tasks.kinds.generation_scores import bleu_and_chrf, on_one_line
from qkvbench.tasks.kinds.splits import load_splits

# Bytes per token, about.
BYTES_A_TOKEN = 4
# Pairs that are tokenized at a time.
AT_ONCE = 8192
Pair = tuple[str, str]


@dataclass(frozen=True)
class Source:
    """Pairs of texts, read up to `length` tokens each. `folder` gives their prepared splits."""

    about: str
    tier: Literal["packaged", "hub"]
    version: int
    model: str
    length: int
    training: Training
    folder: Callable[[Tokenizer], Path]
    hub: HubData | None = None


def translating(source: Source, tokenizer: BytePairs | Bytes) -> Task:
    """The task with both languages in these tokens."""
    length = read_length(source.length, tokenizer)
    return Task(
        about=source.about,
        benchmark="wmt14",
        tier=source.tier,
        version=source.version,
        # By chance no four words in a row are right; with sacreBLEU's smoothing BLEU is near 0.
        metric=Metric("bleu", "BLEU", "higher", chance=0.0),
        tokens=length,
        second_tokens=length,
        model=_model(source, tokenizer),
        training=source.training,
        load=partial(load, source, tokenizer),
        score=partial(score, source, tokenizer),
        with_tokenizer=partial(translating, source),
        generation=GenerationEval(
            search=Search(begin=tokenizer.separator, end=tokenizer.separator, longest=length),
            decode=partial(decode, source, tokenizer),
            sources=partial(lines, source, tokenizer, "english"),
            references=partial(lines, source, tokenizer, "german"),
            score=bleu_and_chrf,
        ),
        hub=source.hub,
    )


def _model(source: Source, tokenizer: Tokenizer) -> Model:
    """An encoder-decoder with as many layers for the English text as for the German one."""
    decoder = transformer(
        source.model,
        Decoder(tokenizer.vocabulary),
        layers=2,
        d_model=96,
        heads=4,
        position=Rotary(),
        init=Init(embedding_std=0.1, position_std=0.1),
    )
    return with_source(decoder, Tokens(tokenizer.vocabulary), Rotary())


def load(source: Source, tokenizer: Tokenizer) -> Data:
    """The prepared splits: German inputs and next tokens, and English as a second input.

    Raises DataUnavailableError if the pairs are not available.
    """
    return load_splits(source.folder(tokenizer))


def score(source: Source, tokenizer: Tokenizer, outcome: Predictions) -> dict[str, float]:
    """Bits per byte of the German texts with their ends, and the loss per token in nats."""
    scored = outcome.targets != IGNORE_INDEX
    loss = float(outcome.loss[scored].mean())
    bytes_a_token = float(_token_bytes(source.folder(tokenizer))[outcome.targets[scored]].mean())
    return {"bits_per_byte": loss / bytes_a_token / math.log(2), "loss": loss}


def decode(
    source: Source, tokenizer: Tokenizer, written: Sequence[Integer[np.ndarray, " _tokens"]]
) -> list[str]:
    """The texts of these tokens."""
    tokenizer_json = (source.folder(tokenizer) / "tokenizer.json").read_text(encoding="utf-8")
    learned = restore(tokenizer, tokenizer_json)
    return [on_one_line(learned.decode(tokens)) for tokens in written]


def lines(source: Source, tokenizer: Tokenizer, language: str) -> list[str]:
    """The texts of the test split in one of the two languages."""
    return (
        (source.folder(tokenizer) / f"test.{language}.txt").read_text(encoding="utf-8").splitlines()
    )


def read_length(tokens: int, tokenizer: Tokenizer) -> int:
    """The most tokens of a text, its end included: bytes are read as far as byte pairs are."""
    return tokens * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)


def save_tokenizer(learned: Fitted, folder: Path) -> None:
    """Save what `decode` and `score` need of a tokenizer."""
    np.save(folder / "token_bytes.npy", learned.token_bytes)
    (folder / "tokenizer.json").write_text(learned.written, encoding="utf-8")


def save_pairs(
    split: str,
    pairs: Iterable[Pair],
    learned: Fitted,
    length: int,
    folder: Path,
    most: int | None = None,
) -> None:
    """Save the pairs of a split that are short enough, `most` of them: English first in each."""
    rest, saved = iter(pairs), 0
    arrays = {
        "inputs": (np.uint16, (length,)),
        "targets": (np.int64, (length,)),
        "lengths": (np.int64, ()),
        "second": (np.uint16, (length,)),
        "second_lengths": (np.int64, ()),
    }
    with ExitStack() as files:
        found = {
            name: files.enter_context(GrowingArray(folder / f"{split}.{name}.npy", *form))
            for name, form in arrays.items()
        }
        texts = [
            files.enter_context((folder / f"{split}.{language}.txt").open("w", encoding="utf-8"))
            for language in ("english", "german")
        ]
        while (parts := list(islice(rest, AT_ONCE))) and (most is None or saved < most):
            english, german = ([*learned.encode(side)] for side in zip(*parts, strict=True))
            # The German text has one token more: its beginning, or its end.
            short = [
                number
                for number in range(len(parts))
                if len(english[number]) <= length and len(german[number]) < length
            ][: None if most is None else most - saved]
            saved += len(short)
            rows = _rows(
                [english[number] for number in short],
                [german[number] for number in short],
                learned.separator,
                length,
            )
            for name, array in rows.items():
                found[name].append(array)
            for side, file in enumerate(texts):
                file.writelines(f"{parts[number][side]}\n" for number in short)


def _rows(
    english: Sequence[Integer[np.ndarray, " _tokens"]],
    german: Sequence[Integer[np.ndarray, " _tokens"]],
    separator: int,
    length: int,
) -> dict[str, np.ndarray]:
    """The arrays of some pairs: separators begin and end each German text, and pad rows."""
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
