"""Praise or blame, byte by byte, as in the Text task of Long Range Arena. arXiv:2011.04006.

There the training and test reviews of IMDb are read up to 4,000 bytes; here the training part
alone, with other splits, up to 1,024 bytes by default.
"""

from dataclasses import replace
from functools import partial

from qkvbench.data.cache import DataRefusedError
from qkvbench.data.tokenizer import Bytes, Tokenizer
from qkvbench.experiment import Training
from qkvbench.model import Init
from qkvbench.tasks import Task
from qkvbench.tasks.kinds.sentiment import splits_folder
from qkvbench.tasks.kinds.texts import Source, text_classification

LENGTH = 1024
# Three of a hundred reviews are longer than 4,096 bytes; the longest has 13,704.
MIN_LENGTH, MAX_LENGTH = 16, 16_384


def text(tokenizer: Tokenizer, length: int) -> Task:
    """The task of telling praise from blame in the first `length` tokens of a review.

    DataRefusedError if no review has so many, or so few say nothing.
    """
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise DataRefusedError(
            f"{length:,} tokens of a review cannot be read; write a length from {MIN_LENGTH} to "
            f"{MAX_LENGTH}."
        )
    source = Source(
        about=f"Tell praise from blame by a review's first {length:,} tokens ({tokenizer.name}).",
        tier="packaged",
        benchmark="long",
        version=1,
        model="long-text",
        classes=2,
        chance=0.5,
        length=length,
        training=Training(
            steps=300, batch=16, learning_rate=3e-3, warmup=30, evaluations=2, scored=1000
        ),
        folder=partial(splits_folder, "imdb", length),
    )
    task = text_classification(source, tokenizer)
    return replace(
        task,
        # A larger deviation than that of byte pairs: the vocabulary is small.
        model=replace(task.model, init=Init(embedding_std=0.5, position_std=0.5)),
        with_tokenizer=lambda other: text(other, length),
        with_length=partial(text, tokenizer),
    )


TASK = text(Bytes(), LENGTH)
