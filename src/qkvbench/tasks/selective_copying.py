"""Selective copying (arXiv:2312.00752): symbols scattered among blanks are repeated in order.

The targets of ``_ c _ _ a _ b | ? ? ?`` are ``c a b`` at the three marks. The position of a symbol
says nothing; the number of symbols before it decides.
"""

import numpy as np

from qkvbench.data.batch import IGNORE_INDEX
from qkvbench.experiment import Training
from qkvbench.model.rng import generator
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.drawn import drawn_task, split_distinct

SYMBOLS = 16
BLANK = SYMBOLS
MARK = SYMBOLS + 1
COPIES = 8
SCATTER_LENGTH = 32
LENGTH = SCATTER_LENGTH + COPIES
SEQUENCES = 40_000


def load() -> Data:
    """Distinct sequences: symbols drawn uniformly, at positions drawn uniformly."""
    rng = generator(0, "task", "selective-copying")
    order = rng.permuted(np.tile(np.arange(SCATTER_LENGTH), (SEQUENCES, 1)), axis=1)
    positions = np.sort(order[:, :COPIES], axis=1)
    symbols = rng.integers(SYMBOLS, size=(SEQUENCES, COPIES))

    items = np.full((SEQUENCES, LENGTH), BLANK)
    items[:, SCATTER_LENGTH:] = MARK
    np.put_along_axis(items, positions, symbols, axis=1)
    targets = np.full_like(items, IGNORE_INDEX)
    targets[:, SCATTER_LENGTH:] = symbols
    return split_distinct(items, targets)


TASK = drawn_task(
    "selective-copying",
    "Repeat in order the 8 symbols, of 16, that are scattered over 32 positions among blanks.",
    vocabulary=SYMBOLS + 2,
    answers=SYMBOLS,
    length=LENGTH,
    training=Training(steps=1000, batch=64, learning_rate=2e-3, warmup=50, evaluations=20),
    load=load,
)
