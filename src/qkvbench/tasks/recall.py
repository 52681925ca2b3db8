"""Multi-query associative recall (arXiv:2312.04927): pairs are shown, then each key is asked for.

``k3 v7 k1 v2 | k1 v2 k3 v7``: only the answers to the second half's keys are scored.
"""

import numpy as np

from qkvbench.data.batch import IGNORE_INDEX
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Init, Learned, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import split_in_order

KEYS = 32
VALUES = 32
PAIRS = 4
LENGTH = 4 * PAIRS
SEQUENCES = 40_000


def load() -> Data:
    """Distinct items: the keys of an item differ, and its values are drawn for it alone."""
    rng = generator(0, "task", "recall")
    keys = rng.permuted(np.tile(np.arange(KEYS), (SEQUENCES, 1)), axis=1)[:, :PAIRS]
    values = KEYS + rng.integers(VALUES, size=(SEQUENCES, PAIRS))
    pairs = np.stack([keys, values], axis=2)
    asked = rng.permuted(np.tile(np.arange(PAIRS), (SEQUENCES, 1)), axis=1)
    again = np.take_along_axis(pairs, asked[:, :, None], axis=1)

    items = np.concatenate([pairs, again], axis=1).reshape(SEQUENCES, -1)
    _, first = np.unique(items, axis=0, return_index=True)
    first.sort()
    targets = np.full_like(items, IGNORE_INDEX)
    targets[:, 2 * PAIRS :: 2] = again[:, :, 1]
    return split_in_order(items[first], targets[first], validation=256, test=1024)


TASK = Task(
    about="Recall the value that was shown with a key: 4 pairs of 32 keys and 32 values.",
    benchmark="recall",
    tier="built-in",
    version=1,
    # Predicting any value of the item scores about 1/PAIRS: better than chance, but no recall.
    metric=Metric("accuracy", "share", "higher", chance=1 / VALUES, solved=0.95),
    tokens=LENGTH,
    model=transformer(
        "recall",
        Decoder(vocabulary=KEYS + VALUES),
        layers=2,
        d_model=64,
        heads=4,
        position=Learned(LENGTH),
        init=Init(embedding_std=0.5, position_std=0.5),
    ),
    training=Training(steps=1000, batch=32, learning_rate=2e-3, warmup=50, evaluations=20),
    load=load,
    score=accuracy,
)
