"""Predict the next byte of FineWeb-Edu: the first gigabyte of its sample. arXiv:2406.17557.

`lm-fineweb-edu-10bt` reads the whole sample.
"""

from dataclasses import replace
from functools import partial

from qkvbench.data.hub_text import SAMPLE, FineWebEdu, fineweb_edu
from qkvbench.data.tokenizer import Bytes
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.language import Source, language_model

# A hundredth is five megabytes on each side, of which four are scored in the end.
FIRST = FineWebEdu("fineweb-edu-1gb", 10**9, {"test": 0.005, "validation": 0.005, "train": 0.99})
# A gigabyte of text is two thirds of one in Parquet.
_READ = 0.65e9

SOURCE = Source(
    about="Predict the next byte of web pages (FineWeb-Edu, 1 GB; not yet run on the real data).",
    tier="hub",
    version=1,
    model="fineweb-edu",
    read=partial(fineweb_edu, FIRST),
    length=1024,
    validation=256 * 1024,
    test=4 * 1024 * 1024,
    training=Training(
        steps=20_000, batch=64, learning_rate=1e-3, warmup=500, final_learning_rate=1e-4
    ),
    hub=replace(SAMPLE, download_bytes=_READ, prepared_bytes=1e9),
)
TASK = language_model(SOURCE, Bytes())
