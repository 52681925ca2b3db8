"""Language modelling: predict the next token of packed documents, scored in bits a byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from qkvbench.data.batch import Predictions
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.hub import HubData
from qkvbench.data.streams import Streams, tokenize
from qkvbench.data.tokenizer import BYTES, Bytes, Tokenizer
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Rotary, transformer
from qkvbench.tasks import Data, Metric, Task
from qkvbench.tasks.kinds.splits import Windows

LENGTH = 128
# Bytes of validation and test text that are scored: the same text for all tokenizers.
VALIDATION = 64 * LENGTH
TEST = 1024 * LENGTH
# A score on fewer windows would mean nothing.
MIN_WINDOWS = 4
MIN_LENGTH = 16
TRAINING = Training(steps=500, batch=8, learning_rate=4e-3, warmup=50)

INIT = Init(embedding_std=0.5, position_std=0.5)


@dataclass(frozen=True)
class Source:
    """A text to model in windows of `length` tokens; `read` gives its documents as bytes.

    So many bytes of validation and of test text are scored. A step reads ``training.batch``
    windows of `length`, or as many tokens in windows of another length, and one window at least.
    If ``tied``, the model's output matrix is its embedding.
    """

    about: str
    tier: Literal["packaged", "hub", "own"]
    version: int
    model: str
    read: Callable[[], Streams]
    benchmark: Literal["lm", "long"] = "lm"
    length: int = LENGTH
    validation: int = VALIDATION
    test: int = TEST
    training: Training = TRAINING
    init: Init = INIT
    tied: bool = False
    hub: HubData | None = None


def language_model(source: Source, tokenizer: Tokenizer) -> Task:
    """The task of predicting the next token of a source."""
    return Task(
        about=source.about,
        benchmark=source.benchmark,
        tier=source.tier,
        version=source.version,
        # A byte costs eight bits if all are equally likely, whatever the tokens.
        metric=Metric("bits_per_byte", "bits", "lower", chance=math.log2(BYTES)),
        tokens=source.length,
        model=transformer(
            source.model,
            Decoder(tokenizer.vocabulary, source.tied),
            layers=2,
            d_model=96,
            heads=4,
            position=Rotary(),
            init=source.init,
        ),
        training=source.training,
        load=partial(load, source, tokenizer),
        score=partial(score, source, tokenizer),
        with_tokenizer=partial(language_model, source),
        with_length=partial(with_length, source, tokenizer),
        hub=source.hub,
    )


def with_length(source: Source, tokenizer: Tokenizer, length: int) -> Task:
    """The same text in windows of another length.

    Raises DataRefusedError if such windows are too few or too short.
    """
    longest = min(source.validation, source.test) // MIN_WINDOWS
    if not MIN_LENGTH <= length <= longest:
        raise DataRefusedError(
            f"Windows of {length:,} tokens cannot be scored here: {source.validation:,} bytes of "
            f"validation text are,\nin {MIN_WINDOWS} windows at least. "
            f"Write a length from {MIN_LENGTH} to {longest}."
        )
    return language_model(at_length(source, length), tokenizer)


def at_length(source: Source, length: int) -> Source:
    """The same text in windows of another length; a step reads as many tokens, if it can."""
    batch = max(1, source.training.batch * source.length // length)
    return replace(source, length=length, training=replace(source.training, batch=batch))


def load(source: Source, tokenizer: Tokenizer) -> Data:
    """Windows on the three streams; of validation and test the first ones, a fair sample.

    Raises DataRefusedError if a stream fills too few windows.
    """
    streams = tokenize(source.read(), tokenizer)
    parts = {
        "training": streams.train,
        "validation": _prefix(streams, streams.validation, source.validation + 1),
        "test": _prefix(streams, streams.test, source.test + 1),
    }
    for name, part in parts.items():
        if len(part) <= MIN_WINDOWS * source.length:
            raise DataRefusedError(
                f"The text is too short: its {name} split has {len(part):,} tokens "
                f"({tokenizer.name}),\nwhich do not fill {MIN_WINDOWS} windows of {source.length}. "
                "Give more text."
            )
    train, validation, test = (Windows(part, source.length) for part in parts.values())
    cut = f"{streams.identity} {source.length} {len(validation)} {len(test)}"
    return Data(train, validation, test, identity=sha256(cut.encode()).hexdigest())


def score(source: Source, tokenizer: Tokenizer, outcome: Predictions) -> dict[str, float]:
    """Bits and perplexity for each byte, and the loss of each token in nats.

    The byte that ends a document is one of them.
    """
    loss = float(outcome.loss.mean())
    match tokenizer:
        case Bytes():
            bytes_a_token = 1.0
        case _:
            bytes_a_token = float(_token_bytes(source, tokenizer)[outcome.targets].mean())
    nats = loss / bytes_a_token
    # math.exp raises on overflow, and callers check for infinity.
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.float64(nats)))
    return {"bits_per_byte": nats / math.log(2), "perplexity": perplexity, "loss": loss}


# Each evaluation needs it.
@lru_cache(maxsize=8)
def _token_bytes(source: Source, tokenizer: Tokenizer) -> Int[np.ndarray, " vocabulary"]:
    return tokenize(source.read(), tokenizer).token_bytes


def _prefix(
    streams: Streams, stream: Integer[np.ndarray, " tokens"], most: int
) -> Integer[np.ndarray, " first"]:
    """The first tokens, of at most so many bytes of text."""
    first = stream[:most]
    return first[: np.searchsorted(np.cumsum(streams.token_bytes[first]), most, side="right")]
