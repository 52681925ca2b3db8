"""Predict the next token of FineWeb-Edu's sample of 10B tokens, for decoders of 100M and more.

A step is half a million tokens; 19,000 of them read the sample once.
"""

from dataclasses import replace
from functools import partial

from qkvbench.data.hub_text import SAMPLE, FineWebEdu, fineweb_edu
from qkvbench.data.tokenizer import BytePairs
from qkvbench.experiment import Training
from qkvbench.model import Init
from qkvbench.tasks.kinds.language import language_model
from qkvbench.tasks.lm_fineweb_edu import SOURCE

WHOLE = FineWebEdu("fineweb-edu-10bt", None, {"test": 0.0005, "validation": 0.0005, "train": 0.999})
# As many tokens as the decoders of arXiv:2606.04032 have, learned from this text.
BYTE_PAIRS = BytePairs(50_304)

PACKED = replace(
    SOURCE,
    about="Predict the next token of web pages (FineWeb-Edu, 10BT; not yet run on the real data).",
    model="fineweb-edu-10bt",
    read=partial(fineweb_edu, WHOLE),
    length=2048,
    training=Training(
        steps=19_000, batch=256, learning_rate=3e-4, warmup=500, final_learning_rate=3e-5
    ),
    # As decoders of this size begin.
    init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    tied=True,
    # Text as bytes, and 16 bits for each of about 10 billion tokens.
    hub=replace(SAMPLE, prepared_bytes=SAMPLE.prepared_bytes + 20e9),
)
TASK = language_model(PACKED, BYTE_PAIRS)
