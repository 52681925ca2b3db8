"""Is a sentence about a film praise or blame? Sentences of Rotten Tomatoes (Pang and Lee 2005)."""

from qkvbench.experiment import Training
from qkvbench.tasks._sentiment import sentiment

LENGTH = 64

TASK = sentiment(
    about="Tell praise from blame in a sentence about a film (Rotten Tomatoes).",
    collection="rotten_tomatoes",
    benchmark="glue",
    length=LENGTH,
    training=Training(steps=400, batch=32, learning_rate=3e-3, warmup=40, evaluations=5),
)
