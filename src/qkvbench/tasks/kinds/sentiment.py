"""Sentiment: labelled reviews as a task."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qkvbench.data.cache import keep, lookup
from qkvbench.data.labelled_reviews import Collection
from qkvbench.data.tokenizer import Tokenizer
from qkvbench.experiment import Training
from qkvbench.tasks import Task
from qkvbench.tasks.kinds.reviews import BYTE_PAIRS, read_length, review_tokenizer, split_reviews
from qkvbench.tasks.kinds.texts import Source, folder_name, save_tokens, text_classification


@dataclass(frozen=True)
class Verdicts:
    """A collection of reviews, of which the first `length` tokens are read."""

    about: str
    collection: Collection
    length: int
    training: Training


def sentiment(verdicts: Verdicts, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task of telling praise from blame; `{length}` in `about` is the number of tokens read."""
    length = read_length(verdicts.length, tokenizer)
    source = Source(
        about=verdicts.about.format(length=length),
        tier="packaged",
        benchmark="glue",
        version=2,
        model="verdicts",
        classes=2,
        chance=0.5,
        length=length,
        training=verdicts.training,
        folder=partial(splits_folder, verdicts.collection, length),
    )
    task = text_classification(source, tokenizer)
    return replace(task, with_tokenizer=partial(sentiment, verdicts))


def splits_folder(collection: Collection, length: int, tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = folder_name(f"verdicts-{collection}", tokenizer, length)
    if folder := lookup(name):
        return folder
    splits, tokens = split_reviews(collection), review_tokenizer(tokenizer)
    return keep(name, lambda making: save_tokens(splits, tokens, length, making))
