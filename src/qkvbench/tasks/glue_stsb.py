"""How alike are two sentences, from 0 to 5? (STS-B; Cer et al. 2017), in steps of a fifth."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric
from qkvbench.tasks.kinds.glue import Glue, correlations, glue, in_steps

# Columns of the card: sentence1, sentence2, label (a number from 0 to 5), idx.
TASK = glue(
    Glue(
        about="Say how alike two sentences are, in steps of a fifth",
        name="STS-B",
        config="stsb",
        texts=("sentence1", "sentence2"),
        classes=26,
        metric=Metric("pearson", "correlation", "higher", chance=0.0),
        score=correlations,
        training=Training(steps=1500, batch=32, learning_rate=1e-3, warmup=75),
        rows=8_630,
        number=in_steps,
    )
)
