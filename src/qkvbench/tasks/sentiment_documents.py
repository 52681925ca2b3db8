"""Is a review of a film praise or blame? Documents of IMDb (Maas et al. 2011), their beginnings."""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.sentiment import Verdicts, sentiment

TASK = sentiment(
    Verdicts(
        about="Tell praise from blame in the first {length} tokens of a film review (IMDb).",
        collection="imdb",
        # More than half of the reviews are longer; their ends, often the verdict, are not read.
        length=256,
        training=Training(
            steps=250, batch=32, learning_rate=3e-3, warmup=25, evaluations=5, scored=2000
        ),
    )
)
