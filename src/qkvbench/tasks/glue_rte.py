"""Does a sentence follow from a text? (RTE, of 2006 to 2009)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric, accuracy
from qkvbench.tasks.kinds.glue import Glue, glue

# Columns of the card: sentence1, sentence2, label (entailment, not_entailment), idx.
TASK = glue(
    Glue(
        about="Tell whether a sentence follows from a text",
        name="RTE",
        config="rte",
        texts=("sentence1", "sentence2"),
        classes=2,
        metric=Metric("accuracy", "share", "higher", chance=0.5),
        score=accuracy,
        training=Training(steps=600, batch=32, learning_rate=1e-3, warmup=30),
        rows=5_770,
    )
)
