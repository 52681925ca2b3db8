"""Whom does a pronoun mean? (WNLI, from the Winograd schemas; Levesque et al. 2012)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric, accuracy
from qkvbench.tasks.kinds.glue import Glue, glue

# Columns of the card: sentence1, sentence2, label (not_entailment, entailment), idx.
TASK = glue(
    Glue(
        about="Tell whom a pronoun means; its 71 scored pairs say little",
        name="WNLI",
        config="wnli",
        texts=("sentence1", "sentence2"),
        classes=2,
        metric=Metric("accuracy", "share", "higher", chance=0.5),
        score=accuracy,
        training=Training(steps=300, batch=32, learning_rate=1e-3, warmup=15),
        rows=852,
    )
)
