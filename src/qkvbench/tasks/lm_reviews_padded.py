"""Film reviews as arXiv:2606.04032 scores them: cut at a length, padded, padding scored.

`lm-reviews` is the same text without padding: whole documents packed end to end.
"""

from qkvbench.data.tokenizer import Bytes
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.language import Source
from qkvbench.tasks.kinds.padded import padded_language_model
from qkvbench.tasks.lm_reviews import read

TASK = padded_language_model(
    Source(
        about="Predict the next byte of film reviews, each cut or padded, the padding scored.",
        tier="packaged",
        version=1,
        model="reviews",
        read=read,
        # At this length a third of the targets is padding.
        length=1024,
        validation=64 * 1024,
        test=256 * 1024,
        training=Training(steps=300, batch=2, learning_rate=4e-3, warmup=30, evaluations=5),
    ),
    Bytes(),
)
