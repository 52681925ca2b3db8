"""Copy digits: a position needs only itself, so every variant should do it."""

import numpy as np

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.rewriting import rewriting

TASK = rewriting(
    "copy",
    "Copy 16 digits: no attention is needed, so what fails here is broken.",
    np.copy,
    training=Training(steps=150, batch=64, learning_rate=3e-3, warmup=15),
    solved=0.95,
)
