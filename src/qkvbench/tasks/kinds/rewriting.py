"""Rewriting digits: an encoder says at each position which digit stands there afterwards."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Int

from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Learned, Tokens, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import split_in_order

DIGITS = 10
LENGTH = 16
SEQUENCES = 20_000

Rewrite = Callable[[Int[np.ndarray, "items length"]], Int[np.ndarray, "items length"]]


def rewriting(
    name: str,
    about: str,
    rewrite: Rewrite,
    *,
    training: Training,
    solved: float | None = None,
) -> Task:
    """The task of saying 16 digits as `rewrite` gives them.

    ``solved`` is for those in which canonical attention makes no mistake: no spread of scores is
    left to compare there, so runs are counted.
    """
    return Task(
        about=about,
        benchmark="recall",
        tier="built-in",
        version=1,
        metric=Metric("accuracy", "share", "higher", chance=1 / DIGITS, solved=solved),
        tokens=LENGTH,
        model=transformer(
            name,
            Encoder(Tokens(DIGITS), DIGITS, "each position"),
            layers=2,
            d_model=64,
            heads=4,
            position=Learned(LENGTH),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        training=training,
        load=partial(load, name, rewrite),
        score=accuracy,
    )


def load(name: str, rewrite: Rewrite) -> Data:
    """Sequences drawn uniformly; no two have the same answer, so no answer can be remembered."""
    drawn = generator(0, "task", name).integers(DIGITS, size=(SEQUENCES, LENGTH))
    answers = rewrite(drawn)
    _, first = np.unique(answers, axis=0, return_index=True)
    # In the order in which they were drawn: the unique answers come in sorted order.
    first.sort()
    return split_in_order(drawn[first], answers[first], validation=256, test=1024)
