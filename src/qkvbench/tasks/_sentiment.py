"""Praise or blame: reviews that come with a verdict, as a task."""

from functools import partial
from pathlib import Path

from qkvbench.data.cache import keep, kept
from qkvbench.data.labelled_reviews import Collection, labelled_reviews
from qkvbench.data.tokenizer import BytePairs, Tokenizer
from qkvbench.experiment import Training
from qkvbench.tasks import Task
from qkvbench.tasks._texts import Source, folder_name, prepare, text_classification

VOCABULARY = 2048


def sentiment(
    about: str, collection: Collection, benchmark: str, length: int, training: Training
) -> Task:
    """The verdict of the reviews of a collection, from their first `length` tokens."""
    source = Source(
        about=about,
        tier="packaged",
        benchmark=benchmark,
        version=1,
        model="verdicts",
        classes=2,
        chance=0.5,
        length=length,
        training=training,
        prepared=partial(prepared, collection, length),
    )
    return text_classification(source, BytePairs(VOCABULARY))


def prepared(collection: Collection, length: int, tokenizer: Tokenizer) -> Path:
    """Where the splits are kept, made on first use."""
    name = folder_name(f"sentiment-{collection}", tokenizer, length)
    if folder := kept(name):
        return folder
    texts, labels = labelled_reviews(collection)
    return keep(name, lambda making: prepare(texts, labels, tokenizer, lambda _: length, making))
