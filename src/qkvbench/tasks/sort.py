"""Sort digits: the target of each position is the digit there in sorted order."""

from functools import partial

import numpy as np

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.rewriting import rewriting

TASK = rewriting(
    "sort",
    "Put 16 digits in order.",
    partial(np.sort, axis=1),
    # Of 1, 2, 4, 8 and 16 times 0.003, what serves most arms on validation (NOTES, sort's rate).
    training=Training(steps=150, batch=64, learning_rate=1.2e-2, warmup=15),
)
