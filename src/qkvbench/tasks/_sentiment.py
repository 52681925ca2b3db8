"""Praise or blame: reviews that come with a verdict, as a task."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qkvbench.data.cache import keep, kept
from qkvbench.data.labelled_reviews import Collection, labelled_reviews
from qkvbench.data.tokenizer import BytePairs, Bytes, Tokenizer
from qkvbench.experiment import Training
from qkvbench.tasks import Task
from qkvbench.tasks._texts import Source, folder_name, prepare, text_classification

BYTE_PAIRS = BytePairs(2048)
# About as many bytes make a token; so bytes are read as far into a text as byte pairs are.
BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Verdicts:
    """A collection of reviews, of which the first `length` tokens are read."""

    about: str
    collection: Collection
    benchmark: str
    length: int
    training: Training


def sentiment(verdicts: Verdicts, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task of telling praise from blame; `{length}` in `about` is what is read of a text."""
    length = verdicts.length * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)
    source = Source(
        about=verdicts.about.format(length=length),
        tier="packaged",
        benchmark=verdicts.benchmark,
        version=1,
        model="verdicts",
        classes=2,
        chance=0.5,
        length=length,
        training=verdicts.training,
        prepared=partial(prepared, verdicts.collection, length),
    )
    task = text_classification(source, tokenizer)
    return replace(task, retokenized=partial(sentiment, verdicts))


def prepared(collection: Collection, length: int, tokenizer: Tokenizer) -> Path:
    """Where the splits are kept, made on first use."""
    name = folder_name(f"sentiment-{collection}", tokenizer, length)
    if folder := kept(name):
        return folder
    texts, labels = labelled_reviews(collection)
    return keep(name, lambda making: prepare(texts, labels, tokenizer, lambda _: length, making))
