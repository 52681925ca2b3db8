"""Synthetic sequences, read by a decoder of two layers."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Learned, transformer
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import split_in_order

VALIDATION = 256
TEST = 1024


def drawn_task(
    name: str,
    about: str,
    *,
    vocabulary: int,
    answers: int,
    length: int,
    training: Training,
    load: Callable[[], Data],
) -> Task:
    """A causal task in which one of so many `answers` is right at each scored position.

    A run solves such a task or scores near chance, so solved runs are counted.
    """
    return Task(
        about=about,
        benchmark="recall",
        tier="built-in",
        version=1,
        metric=Metric("accuracy", "share", "higher", chance=1 / answers, solved=0.95),
        tokens=length,
        model=transformer(
            name,
            Decoder(vocabulary),
            layers=2,
            d_model=64,
            heads=4,
            position=Learned(length),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        training=training,
        load=load,
        score=accuracy,
    )


def split_distinct(
    inputs: Int[np.ndarray, "drawn length"], targets: Int[np.ndarray, "drawn length"]
) -> Data:
    """The splits of the distinct sequences, in the order in which they were drawn."""
    _, first = np.unique(inputs, axis=0, return_index=True)
    first.sort()
    return split_in_order(inputs[first], targets[first], validation=VALIDATION, test=TEST)
