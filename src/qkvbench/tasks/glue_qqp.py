"""Do two questions of Quora ask the same? (QQP)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric
from qkvbench.tasks.kinds.glue import Glue, f1, glue

# Columns of the card: question1, question2, label (not_duplicate, duplicate), idx.
TASK = glue(
    Glue(
        about="Tell whether two questions ask the same",
        name="QQP",
        config="qqp",
        texts=("question1", "question2"),
        classes=2,
        # Of a coin, with 37 of 100 pairs alike: always saying so gives .54.
        metric=Metric("f1", "share", "higher", chance=0.42),
        score=f1,
        training=Training(steps=12000, batch=32, learning_rate=1e-3, warmup=600),
        rows=795_000,
    )
)
