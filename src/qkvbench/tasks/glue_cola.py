"""Is a sentence grammatical? (CoLA; Warstadt et al., arXiv:1805.12471)."""

from qkvbench.experiment import Training
from qkvbench.tasks import Metric
from qkvbench.tasks.kinds.glue import Glue, glue, matthews

# Columns of the card: sentence, label (unacceptable, acceptable), idx.
TASK = glue(
    Glue(
        about="Tell whether a sentence is acceptable English",
        name="CoLA",
        config="cola",
        texts=("sentence",),
        classes=2,
        metric=Metric("matthews", "correlation", "higher", chance=0.0),
        score=matthews,
        training=Training(steps=2000, batch=32, learning_rate=1e-3, warmup=100),
        rows=10_700,
    )
)
