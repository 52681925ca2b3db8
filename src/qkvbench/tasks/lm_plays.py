"""Predict the next byte of Shakespeare's plays: 30 whole ones to train with, 8 held out."""

from qkvbench.data.plays import plays
from qkvbench.data.tokenizer import Bytes
from qkvbench.tasks.kinds.language import Source, language_model

TASK = language_model(
    Source(
        about="Predict the next byte of Shakespeare's plays, of which none is in two splits.",
        tier="packaged",
        version=1,
        model="plays",
        read=plays,
        # A quarter of it is of each held-out play.
        validation=32 * 1024,
    ),
    Bytes(),
)
