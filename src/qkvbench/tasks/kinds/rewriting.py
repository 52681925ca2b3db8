"""Rewriting digits: an encoder predicts at each position the digit of the rewritten sequence."""

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
    """The task of predicting what `rewrite` makes of 16 digits.

    ``solved`` is for tasks in which canonical attention makes no mistake: scores have no spread
    to compare, so solved runs are counted.
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
    """Sequences drawn uniformly; no two have the same answer, so none can be memorized."""
    drawn = generator(0, "task", name).integers(DIGITS, size=(SEQUENCES, LENGTH))
    answers = rewrite(drawn)
    _, first = np.unique(answers, axis=0, return_index=True)
    # Back to the order in which they were drawn: `unique` sorts the answers.
    first.sort()
    return split_in_order(drawn[first], answers[first], validation=256, test=1024)
