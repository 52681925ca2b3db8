"""Swap the halves of a sequence of digits: each target is the digit half a length away.

Which position attends to which is symmetric, so nothing is lost if Q is K.
"""

from functools import partial

import numpy as np

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.rewriting import LENGTH, rewriting

TASK = rewriting(
    "swap",
    "Exchange the halves of 16 digits: each target is 8 positions away, both ways alike.",
    partial(np.roll, shift=LENGTH // 2, axis=1),
    training=Training(steps=150, batch=64, learning_rate=3e-3, warmup=15),
    solved=0.95,
)
