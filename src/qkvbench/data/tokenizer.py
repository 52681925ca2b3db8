"""Text as tokens: bytes, or byte pairs learned from a training split. arXiv:1508.07909."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer

from qkvbench.data.cache import DataRefusedError

BYTES = 256
# 256 bytes and the separator of documents; token streams have 16 bits a token.
MIN_VOCABULARY, MAX_VOCABULARY = BYTES + 1, 2**16
# Merges learned from a sample of this size give the same scores as those of the whole.
SAMPLE_BYTES = 64 * 10**6
ENCODE_BATCH = 1024
# Raised with every change to how merges are learned or text is tokenized.
PREPARATION = 1


@dataclass(frozen=True)
class Bytes:
    """Each byte of UTF-8 is a token; the separator of documents is byte 0."""

    vocabulary: int = BYTES
    name: str = "bytes"

    @property
    def separator(self) -> int:
        """The token between texts, which no text contains."""
        return 0


@dataclass(frozen=True)
class BytePairs:
    """Byte-level byte-pair encoding with so many tokens, the last of them the separator."""

    vocabulary: int

    @property
    def name(self) -> str:
        """The text that `parse_tokenizer` reads."""
        return f"bpe-{self.vocabulary}"

    @property
    def separator(self) -> int:
        """The token between texts, which no text contains."""
        return self.vocabulary - 1


Tokenizer = Bytes | BytePairs


@runtime_checkable
class Fitted(Protocol):
    """A tokenizer fit to a training split."""

    separator: int
    token_bytes: Int[np.ndarray, " vocabulary"]
    written: str

    def encode(self, texts: Iterable[str]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """The tokens of each text, without a separator."""
        ...

    def decode(self, tokens: Integer[np.ndarray, " tokens"]) -> str:
        """The text of these tokens; invalid UTF-8 becomes U+FFFD."""
        ...


def parse_tokenizer(text: str) -> Tokenizer:
    """The tokenizer with this name; DataRefusedError if there is none."""
    if text == Bytes().name:
        return Bytes()
    kind, _, size = text.partition("-")
    if kind != "bpe" or not (size.isascii() and size.isdigit()):
        raise DataRefusedError(
            f"There is no tokenizer '{text}'; there are bytes and bpe-N, as in bpe-1024."
        )
    if len(size) > 9 or not MIN_VOCABULARY <= int(size) <= MAX_VOCABULARY:
        raise DataRefusedError(
            f"A tokenizer cannot have {size} tokens: bpe-{MIN_VOCABULARY} (every byte and a "
            f"separator) is the smallest, bpe-{MAX_VOCABULARY} (16 bits a token) the largest."
        )
    return BytePairs(int(size))


def fit(tokenizer: Tokenizer, training: Iterable[str]) -> Fitted:
    """The tokenizer, fit to the texts of a training split and to nothing else.

    The same texts give the same tokens. Raises DataRefusedError if they are too few for that many
    tokens.
    """
    match tokenizer:
        case Bytes():
            return _FittedBytes()
        case BytePairs(vocabulary):
            return _FittedBytePairs(_learn_merges(training, vocabulary))


def restore(tokenizer: Tokenizer, written: str) -> Fitted:
    """The tokenizer whose `written` this is."""
    match tokenizer:
        case Bytes():
            return _FittedBytes()
        case BytePairs():
            # As in `_learn_merges`: set before the library starts.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            from tokenizers import Tokenizer as Learned

            return _FittedBytePairs(Learned.from_str(written))


class _FittedBytes:
    """Bytes: nothing is learned."""

    separator = Bytes().separator
    written = ""

    def __init__(self) -> None:
        self.token_bytes = np.ones(BYTES, np.int64)

    def encode(self, texts: Iterable[str]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """The bytes of each text in UTF-8."""
        return (np.frombuffer(text.encode(), np.uint8) for text in texts)

    def decode(self, tokens: Integer[np.ndarray, " tokens"]) -> str:
        """The text of these bytes."""
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")


class _FittedBytePairs:
    """Learned merges, applied by the library that learned them."""

    def __init__(self, learned: Any) -> None:
        self.learned = learned
        self.separator = learned.get_vocab_size()
        self.written = learned.to_str()
        # In a byte-level vocabulary each letter is one byte. The separator counts as one, too.
        self.token_bytes = np.ones(self.separator + 1, np.int64)
        for token, number in learned.get_vocab().items():
            self.token_bytes[number] = len(token)

    def encode(self, texts: Iterable[str]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """The tokens of each text, encoded in groups to bound the memory of the library."""
        left = iter(texts)
        while group := list(islice(left, ENCODE_BATCH)):
            for found in self.learned.encode_batch_fast(group):
                yield np.array(found.ids, np.uint16)

    def decode(self, tokens: Integer[np.ndarray, " tokens"]) -> str:
        """The text of these tokens, without separators."""
        return self.learned.decode([token for token in tokens if token != self.separator])


def _learn_merges(training: Iterable[str], vocabulary: int) -> Any:
    # Set before the library starts: its threads would not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer as Learned
    from tokenizers import decoders, models, pre_tokenizers, trainers

    learned = Learned(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # We add the separator ourselves: any letters for it could occur in a text.
        vocab_size=vocabulary - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(_sample(training), trainer)
    if learned.get_vocab_size() < vocabulary - 1:
        raise DataRefusedError(
            f"The training split is too small to learn {vocabulary} tokens from: it gives "
            f"{learned.get_vocab_size() + 1}. Write bpe-{learned.get_vocab_size() + 1} or less."
        )
    return learned


def _sample(training: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_BYTES
    for text in training:
        left -= len(text.encode())
        if left < 0:
            return
        yield text
