"""Predict the next byte of Shakespeare's plays in windows of any length.

Each play has more than 32k tokens of GPT-2. `long-plays@512` to `long-plays@8192` are scored on the
same text; a step reads 2,048 tokens, or one window if that is longer.
"""

from qkvbench.data.plays import plays
from qkvbench.data.tokenizer import Bytes
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.language import Source, language_model

TASK = language_model(
    Source(
        about="Predict the next byte of Shakespeare's plays in long windows.",
        tier="packaged",
        version=1,
        model="long-plays",
        read=plays,
        benchmark="long",
        length=2048,
        validation=32 * 1024,
        training=Training(steps=400, batch=1, learning_rate=4e-3, warmup=40, evaluations=4),
    ),
    Bytes(),
)
