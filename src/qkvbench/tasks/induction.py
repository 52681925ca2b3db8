"""Predict what followed last time: the pattern that induction heads complete. arXiv:2209.11895.

The target of ``… a c … a`` is ``c``. Every repeated token has a target, not a special one alone
(arXiv:2312.00752), and the next token is random: only looking back helps.
"""

import numpy as np
from jaxtyping import Int

from qkvbench.data.batch import IGNORE_INDEX
from qkvbench.experiment import Training
from qkvbench.model.rng import generator
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.drawn import drawn_task, split_distinct

SYMBOLS = 16
LENGTH = 32
SEQUENCES = 20_000


def load() -> Data:
    """Distinct sequences of symbols drawn uniformly."""
    items = generator(0, "task", "induction").integers(SYMBOLS, size=(SEQUENCES, LENGTH))
    return split_distinct(items, followers(items))


def followers(items: Int[np.ndarray, "items length"]) -> Int[np.ndarray, "items length"]:
    """For each position, the token that followed the last earlier occurrence of its symbol."""
    rows = np.arange(len(items))
    last = np.full((len(items), SYMBOLS), IGNORE_INDEX)
    found = np.full_like(items, IGNORE_INDEX)
    for position in range(1, items.shape[1]):
        last[rows, items[:, position - 1]] = items[:, position]
        found[:, position] = last[rows, items[:, position]]
    return found


TASK = drawn_task(
    "induction",
    "Predict what followed the last occurrence of a symbol: 32 positions, 16 symbols.",
    vocabulary=SYMBOLS,
    answers=SYMBOLS,
    length=LENGTH,
    training=Training(steps=1000, batch=32, learning_rate=3e-3, warmup=50, evaluations=20),
    load=load,
)
