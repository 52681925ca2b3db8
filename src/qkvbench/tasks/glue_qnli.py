"""Does a sentence answer a question? (QNLI, from SQuAD; Rajpurkar et al., arXiv:1606.05250)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric, accuracy
from qkvbench.tasks.kinds.glue import Glue, glue

# Columns of the card: question, sentence, label (entailment, not_entailment), idx.
TASK = glue(
    Glue(
        about="Tell whether a sentence answers a question",
        name="QNLI",
        config="qnli",
        texts=("question", "sentence"),
        classes=2,
        metric=Metric("accuracy", "share", "higher", chance=0.5),
        score=accuracy,
        training=Training(steps=6000, batch=32, learning_rate=1e-3, warmup=300),
        rows=116_000,
    )
)
