"""Does a sentence follow from another? (MNLI, matched; Williams et al., arXiv:1704.05426)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric, accuracy
from qkvbench.tasks.kinds.glue import Glue, glue

# Columns of the card: premise, hypothesis, label (entailment, neutral, contradiction), idx.
MNLI = Glue(
    about="Tell what follows from a sentence, what contradicts it",
    name="MNLI, matched",
    config="mnli",
    texts=("premise", "hypothesis"),
    classes=3,
    metric=Metric("accuracy", "share", "higher", chance=1 / 3),
    score=accuracy,
    training=Training(steps=12000, batch=32, learning_rate=1e-3, warmup=600),
    rows=432_000,
    scored="validation_matched",
)
TASK = glue(MNLI)
