"""Praise or blame in a sentence of a film review (SST-2; Socher et al. 2013)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric, accuracy
from qkvbench.tasks.kinds.glue import Glue, glue

# Columns of the card: sentence, label (negative, positive), idx.
TASK = glue(
    Glue(
        about="Tell praise from blame in a sentence",
        name="SST-2",
        config="sst2",
        texts=("sentence",),
        classes=2,
        metric=Metric("accuracy", "share", "higher", chance=0.5),
        score=accuracy,
        training=Training(steps=6000, batch=32, learning_rate=1e-3, warmup=300),
        rows=70_000,
    )
)
