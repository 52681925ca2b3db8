"""Do two sentences of news say the same? (MRPC; Dolan and Brockett 2005)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric
from qkvbench.tasks.kinds.glue import Glue, f1, glue

# Columns of the card: sentence1, sentence2, label (not_equivalent, equivalent), idx.
TASK = glue(
    Glue(
        about="Tell whether two sentences of news mean the same",
        name="MRPC",
        config="mrpc",
        texts=("sentence1", "sentence2"),
        classes=2,
        # Of a coin, with two thirds of the pairs alike: always saying so gives .81.
        metric=Metric("f1", "share", "higher", chance=0.58),
        score=f1,
        training=Training(steps=1000, batch=32, learning_rate=1e-3, warmup=50),
        rows=5_800,
    )
)
