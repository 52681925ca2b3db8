"""Is a sentence about a film praise or blame? Sentences of Rotten Tomatoes (Pang and Lee 2005)."""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.sentiment import Verdicts, sentiment

TASK = sentiment(
    Verdicts(
        about="Tell praise from blame in a sentence about a film (Rotten Tomatoes).",
        collection="rotten_tomatoes",
        length=64,
        training=Training(steps=400, batch=32, learning_rate=3e-3, warmup=40, evaluations=5),
    )
)
