"""Reverse digits: the target of each position is the digit as far from the other end.

Which position attends to which is symmetric, so nothing is lost if Q is K.
"""

from functools import partial

import numpy as np

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.rewriting import rewriting

TASK = rewriting(
    "reverse",
    "Reverse 16 digits: which position attends to which is fixed, and symmetric.",
    partial(np.flip, axis=1),
    training=Training(steps=150, batch=64, learning_rate=3e-3, warmup=15),
    solved=0.95,
)
