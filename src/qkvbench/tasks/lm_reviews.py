"""Predict the next byte of film reviews: real prose, whole documents packed end to end."""

import math
from hashlib import sha256

import numpy as np

from qkvbench.data import reviews
from qkvbench.data.batch import Outcome
from qkvbench.experiment import Training
from qkvbench.model import Decoder, Rotary, Start, transformer
from qkvbench.tasks import Data, Metric, Task
from qkvbench.tasks._splits import Windows

BYTES = 256
LENGTH = 128
VALIDATION = 64
TEST = 1024


def load() -> Data:
    """Windows on the three streams; of the later two the first ones, which are a fair sample."""
    streams = reviews()
    cut = f"{streams.identity} {LENGTH} {VALIDATION} {TEST}"
    return Data(
        train=Windows(streams.train, LENGTH),
        validation=Windows(streams.validation[: VALIDATION * LENGTH + 1], LENGTH),
        test=Windows(streams.test[: TEST * LENGTH + 1], LENGTH),
        identity=sha256(cut.encode()).hexdigest(),
    )


def score(outcome: Outcome) -> dict[str, float]:
    """Bits and perplexity for each byte, the zero at the end of a document included."""
    loss = float(outcome.loss.mean())
    # math.exp refuses what is infinite here, and infinite is what a caller looks for.
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.float64(loss)))
    return {"bits_per_byte": loss / math.log(2), "perplexity": perplexity, "loss": loss}


TASK = Task(
    about="Predict the next byte of film reviews (IMDb and Rotten Tomatoes).",
    benchmark="lm",
    tier="packaged",
    version=1,
    metric=Metric("bits_per_byte", "bits", "lower", chance=math.log2(BYTES)),
    tokens=LENGTH,
    model=transformer(
        "reviews",
        Decoder(vocabulary=BYTES),
        layers=2,
        d_model=96,
        heads=4,
        position=Rotary(),
        start=Start(table=0.5, position=0.5),
    ),
    training=Training(steps=500, batch=8, learning_rate=4e-3, warmup=50),
    load=load,
    score=score,
)
