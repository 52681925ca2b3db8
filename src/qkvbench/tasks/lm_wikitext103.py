"""Predict the next byte of WikiText-103: whole articles of Wikipedia, packed. arXiv:1609.07843.

It is the raw form, in bits per byte: its published word perplexities are of another form, with a
token for rare words, and are not comparable.
"""

from qkvbench.data.hub_text import WIKITEXT_103, wikitext
from qkvbench.data.tokenizer import Bytes
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.language import Source, language_model

TASK = language_model(
    Source(
        about="Predict the next byte of Wikipedia (WikiText-103; not yet run on the real data).",
        tier="hub",
        version=1,
        model="wikitext103",
        read=wikitext,
        length=1024,
        validation=256 * 1024,
        # Of 1.3 MB, nearly all.
        test=1024 * 1024,
        training=Training(
            steps=20_000, batch=64, learning_rate=1e-3, warmup=500, final_learning_rate=1e-4
        ),
        hub=WIKITEXT_103,
    ),
    Bytes(),
)
