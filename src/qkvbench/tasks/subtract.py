"""Subtract each digit from nine: a position needs only itself, so every variant can do it."""

from functools import partial

import numpy as np

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.rewriting import DIGITS, rewriting

TASK = rewriting(
    "subtract",
    "Subtract each of 16 digits from nine: no attention is needed, so what fails here is broken.",
    partial(np.subtract, DIGITS - 1),
    training=Training(steps=150, batch=64, learning_rate=3e-3, warmup=15),
    solved=0.95,
)
