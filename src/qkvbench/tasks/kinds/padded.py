"""Language modelling as arXiv:2606.04032 scores it: padding counts among the targets.

There each document is cut at a length and padded with the end token. Only the first end token
carries information; a trained model predicts the others at almost no loss, so the perplexity over
all targets is too low. Here a model is trained in that way, and both perplexities are reported.
"""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b, sha256

import numpy as np
from jaxtyping import Bool, Int, Integer

from qkvbench.data.batch import Batch, Predictions
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.documents import SEPARATOR
from qkvbench.data.streams import tokenize
from qkvbench.data.tokenizer import BytePairs, Bytes, Tokenizer
from qkvbench.tasks import Data, Task
from qkvbench.tasks.kinds import language as language
from qkvbench.tasks.kinds.language import MIN_LENGTH, Source

# Of longer inputs nearly all is padding.
MAX_LENGTH = 8192


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents of a stream, cut at `length` tokens or padded to it with the end token.

    ``starts`` and ``ends`` are the positions of each document's first token and of its end token.
    """

    stream: Integer[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " documents"]
    ends: Int[np.ndarray, " documents"]
    length: int

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.starts)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The documents with these numbers."""
        # (documents, length + 1); positions of the next document repeat the end token.
        positions = self.starts[indices, None] + np.arange(self.length + 1)
        tokens = self.stream[np.minimum(positions, self.ends[indices, None])].astype(np.int64)
        return Batch(tokens[:, :-1], tokens[:, 1:])

    def first(self, count: int) -> "Documents":
        """The first documents alone."""
        return replace(self, starts=self.starts[:count], ends=self.ends[:count])


def padded_language_model(source: Source, tokenizer: Tokenizer) -> Task:
    """The task of predicting the next token of each document of a source, and its padding."""
    return replace(
        language.language_model(source, tokenizer),
        load=partial(load, source, tokenizer),
        score=partial(score, source, tokenizer),
        with_tokenizer=partial(padded_language_model, source),
        with_length=partial(with_length, source, tokenizer),
    )


def with_length(source: Source, tokenizer: Tokenizer, length: int) -> Task:
    """The same documents cut at another length; DataRefusedError if it is out of range."""
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise DataRefusedError(
            f"Documents cannot be cut at {length:,} tokens here; "
            f"write a length from {MIN_LENGTH} to {MAX_LENGTH}."
        )
    return padded_language_model(language.at_length(source, length), tokenizer)


def load(source: Source, tokenizer: Tokenizer) -> Data:
    """The documents of each split; of validation and test the first ones, a fair sample.

    Documents that are equal up to `length` count once, in the first of test, validation and
    training.
    """
    streams = tokenize(source.read(), tokenizer)
    seen: set[bytes] = set()
    test, validation, train = (
        _documents(stream, end_token(tokenizer), source.length, seen)
        for stream in (streams.test, streams.validation, streams.train)
    )
    validation = validation.first(source.validation // source.length)
    test = test.first(source.test // source.length)
    cut = f"{streams.identity} padded {source.length} {len(validation)} {len(test)}"
    return Data(train, validation, test, identity=sha256(cut.encode()).hexdigest())


def score(source: Source, tokenizer: Tokenizer, outcome: Predictions) -> dict[str, float]:
    """Bits per byte and perplexity per token of text, and the perplexity with padding.

    ``padded_perplexity`` is the study's figure: over all targets. ``padding`` is the share of them
    that follows a document's end token, which itself counts as text.
    """
    text = ~padding(outcome.targets, end_token(tokenizer))
    parts = (outcome.loss, outcome.predicted, outcome.targets, outcome.ranks)
    on_text = language.score(source, tokenizer, Predictions(*(part[text][None] for part in parts)))
    with np.errstate(over="ignore"):
        perplexity, padded_perplexity = np.exp(
            [np.mean(loss, dtype=np.float64) for loss in (outcome.loss[text], outcome.loss)]
        )
    return on_text | {
        "perplexity": float(perplexity),
        "padded_perplexity": float(padded_perplexity),
        "padding": float(1 - text.mean()),
    }


def padding(
    targets: Int[np.ndarray, "documents positions"], end: int
) -> Bool[np.ndarray, "documents positions"]:
    """A mask of the targets that repeat the end token."""
    ended = targets == end
    return np.cumsum(ended, axis=1) > ended


def end_token(tokenizer: Tokenizer) -> int:
    """The token that ends a document."""
    match tokenizer:
        case Bytes():
            return SEPARATOR
        case BytePairs(vocabulary):
            return vocabulary - 1


def _documents(
    stream: Integer[np.ndarray, " tokens"], end: int, length: int, seen: set[bytes]
) -> Documents:
    """The documents of a stream whose first `length` tokens are new.

    The digests of those are in `seen`, which grows.
    """
    ends = np.flatnonzero(stream == end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    new: list[int] = []
    for number, (start, last) in enumerate(zip(starts, ends, strict=True)):
        read = stream[start : min(start + length, last + 1)].tobytes()
        # Millions of documents are held in 16 bytes each.
        digest = blake2b(read, digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            new.append(number)
    return Documents(stream, starts[new], ends[new], length)
