"""Topics: labelled collections of texts as a task."""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from qkvbench.data.cache import keep, lookup
from qkvbench.data.tokenizer import Tokenizer
from qkvbench.data.topics import Collection, topics
from qkvbench.experiment import Training
from qkvbench.tasks import Metric, Task, balanced_accuracy
from qkvbench.tasks.kinds.reviews import BYTE_PAIRS, read_length, review_tokenizer
from qkvbench.tasks.kinds.texts import (
    Labelled,
    Source,
    folder_name,
    save_tokens,
    split_texts,
    text_classification,
)

# Ends of validation and training in the texts that are not for tests, in percent.
ENDS_OF_TRAIN = {"validation": 10, "train": 100}


@dataclass(frozen=True)
class Topics:
    """A collection with so many `classes`, of whose texts the first `length` tokens are read.

    ``metric`` is one of those that `balanced_accuracy` gives.
    """

    about: str
    collection: Collection
    classes: int
    length: int
    metric: str
    training: Training


def topic(texts: Topics, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task of naming a text's topic; `{length}` in `about` is the number of tokens read."""
    length = read_length(texts.length, tokenizer)
    source = Source(
        about=texts.about.format(length=length),
        tier="packaged",
        benchmark="glue",
        version=1,
        model="topics",
        classes=texts.classes,
        chance=1 / texts.classes,
        length=length,
        training=texts.training,
        folder=partial(splits_folder, texts.collection, length),
    )
    return replace(
        text_classification(source, tokenizer),
        metric=Metric(texts.metric, "share", "higher", chance=source.chance),
        score=balanced_accuracy,
        with_tokenizer=partial(topic, texts),
    )


def splits_folder(collection: Collection, length: int, tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = folder_name(f"topics-{collection}", tokenizer, length)
    if folder := lookup(name):
        return folder
    splits, tokens = split_topics(collection), review_tokenizer(tokenizer)
    return keep(name, lambda making: save_tokens(splits, tokens, length, making))


def split_topics(collection: Collection) -> dict[str, Labelled]:
    """The collection's own test split; a tenth of its other texts is for validation.

    Its own, because its texts are later than the training texts: an answer to a post quotes it.
    Each split is in the order of hashes, so any prefix is a fair sample.
    """
    found = topics(collection)
    names = sorted(set(found["train"].values()))
    ordered = {
        split: sorted(texts.items(), key=lambda item: sha256(item[0].encode()).digest())
        for split, texts in found.items()
    }
    labelled = {
        split: Labelled([text for text, _ in items], [names.index(name) for _, name in items])
        for split, items in ordered.items()
    }
    own = labelled["train"]
    return {**split_texts(own.texts, own.labels, ENDS_OF_TRAIN), "test": labelled["test"]}
