"""Is a review of a film praise or blame? Documents of IMDb (Maas et al. 2011), their beginnings."""

from qkvbench.experiment import Training
from qkvbench.tasks._sentiment import sentiment

# Half of the reviews are longer. What stands behind is not read, often the verdict itself.
LENGTH = 256

TASK = sentiment(
    about=f"Tell praise from blame in the first {LENGTH} tokens of a film review (IMDb).",
    collection="imdb",
    benchmark="long",
    length=LENGTH,
    training=Training(steps=400, batch=32, learning_rate=3e-3, warmup=40, evaluations=5),
)
