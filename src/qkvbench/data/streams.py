"""Packed documents as streams of tokens; byte pairs are cached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from qkvbench.data.cache import identity_of, keep, lookup
from qkvbench.data.documents import SEPARATOR
from qkvbench.data.growing_array import GrowingArray
from qkvbench.data.tokenizer import PREPARATION, BytePairs, Bytes, Tokenizer, fit

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Streams:
    """The tokens of disjoint sets of documents, a separator after each, and their hash.

    ``token_bytes`` is the number of bytes of text for each token of the vocabulary.
    """

    train: Integer[np.ndarray, " train"]
    validation: Integer[np.ndarray, " validation"]
    test: Integer[np.ndarray, " test"]
    token_bytes: Int[np.ndarray, " vocabulary"]
    identity: str


def byte_streams(streams: Mapping[str, np.ndarray], identity: str) -> Streams:
    """Packed documents whose tokens are their bytes."""
    return Streams(**streams, token_bytes=np.ones(Bytes().vocabulary, np.int64), identity=identity)


def tokenize(streams: Streams, tokenizer: Tokenizer) -> Streams:
    """The same documents, given as bytes, in these tokens; learned once, then read from the cache.

    Raises DataUnavailableError if the cache cannot be written, DataRefusedError if the training
    split is too small for the vocabulary.
    """
    match tokenizer:
        case Bytes():
            return streams
        case BytePairs():
            name = f"{tokenizer.name}-{streams.identity[:16]}-{PREPARATION}"
            folder = lookup(name) or keep(name, lambda making: _make(streams, tokenizer, making))
            parts = {each: np.load(folder / f"{each}.npy", mmap_mode="r") for each in SPLITS}
            return Streams(
                **parts,
                token_bytes=np.load(folder / "token_bytes.npy"),
                identity=identity_of(folder),
            )


def _make(streams: Streams, tokenizer: BytePairs, folder: Path) -> None:
    learned = fit(tokenizer, _documents(streams.train))
    end = np.array([learned.separator], np.uint16)
    for split in SPLITS:
        with GrowingArray(folder / f"{split}.npy", np.uint16) as file:
            for tokens in learned.encode(_documents(getattr(streams, split))):
                file.append(tokens)
                file.append(end)
    np.save(folder / "token_bytes.npy", learned.token_bytes)
    (folder / "tokenizer.json").write_text(learned.written, encoding="utf-8")


# Bytes that are read at a time: a stream may be larger than the memory.
_AT_ONCE = 1 << 26


def _documents(stream: np.ndarray) -> Iterator[str]:
    """The documents of a stream of bytes, one after the other."""
    rest = b""
    for start in range(0, len(stream), _AT_ONCE):
        *whole, rest = (rest + stream[start : start + _AT_ONCE].tobytes()).split(bytes([SEPARATOR]))
        yield from (document.decode() for document in whole)
