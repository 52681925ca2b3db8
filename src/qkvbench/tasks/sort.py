"""Sort digits: the output at each position is the digit that stands there in sorted order."""

import numpy as np

from qkvbench.experiment import Training
from qkvbench.model import Encoder, Learned, Start, Tokens, transformer
from qkvbench.model.draws import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks._splits import divided

DIGITS = 10
LENGTH = 16
DRAWN = 20_000


def load() -> Data:
    """Sequences drawn uniformly; no two have the same answer, so no answer can be remembered."""
    drawn = generator(0, "task", "sort").integers(DIGITS, size=(DRAWN, LENGTH))
    answers = np.sort(drawn, axis=1)
    _, first = np.unique(answers, axis=0, return_index=True)
    # In the order in which they were drawn: the unique answers come in sorted order.
    first.sort()
    return divided(drawn[first], answers[first], validation=256, test=1024)


TASK = Task(
    about="Put 16 digits in order.",
    benchmark="recall",
    tier="built-in",
    version=1,
    metric=Metric("accuracy", "share", "higher", chance=1 / DIGITS),
    tokens=LENGTH,
    model=transformer(
        "sort",
        Encoder(Tokens(DIGITS), DIGITS, "each position"),
        layers=2,
        d_model=64,
        heads=4,
        position=Learned(LENGTH),
        start=Start(table=0.5, position=0.5),
    ),
    training=Training(steps=150, batch=64, learning_rate=3e-3, warmup=15),
    load=load,
    score=accuracy,
)
