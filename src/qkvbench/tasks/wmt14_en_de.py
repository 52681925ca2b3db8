"""Translate news from English into German (WMT14; Bojar et al. 2014), scored as sacreBLEU does.

Training pairs are Europarl's, Common Crawl's and News Commentary's; newstest2013 is scored on the
way and newstest2014 in the end. Pairs with a text of more than 128 tokens are left out of all
three, so a score is of nearly all of newstest2014, not of all.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from qkvbench.data.cache import prepare_once
from qkvbench.data.hub import HubData
from qkvbench.data.hub_rows import rows
from qkvbench.data.tokenizer import PREPARATION, BytePairs, Fitted, Tokenizer, fit
from qkvbench.experiment import Training
from qkvbench.tasks.kinds.generation_scores import on_one_line
from qkvbench.tasks.kinds.translating import (
    Pair,
    Source,
    read_length,
    save_pairs,
    save_tokenizer,
    translating,
)

LENGTH = 128
SPLITS = ("train", "validation", "test")
# Columns of the card: translation, a dictionary of de and en.
WMT14 = HubData(
    repository="wmt/wmt14",
    revision="b199e406369ec1b7634206d3ded5ba45de2fe696",
    files={split: f"de-en/{split}-*.parquet" for split in SPLITS},
    columns=("translation",),
    download_bytes=818_467_512,
    # 4,508,785 pairs: 16 bits a token on both sides, 64 bits a target, and the lengths.
    prepared_bytes=4_508_785 * (LENGTH * (2 + 2 + 8) + 16 + 300),
    licence="not stated",
)


def pairs(split: str) -> Iterator[Pair]:
    """The English and the German text of each pair, each on one line; empty texts are left out."""
    for row in rows(WMT14, split):
        english, german = (on_one_line(row["translation"][code]) for code in ("en", "de"))
        if english and german:
            yield english, german


def splits_folder(tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    length = read_length(LENGTH, tokenizer)
    name = f"wmt14-en-de-{WMT14.revision[:8]}-{tokenizer.name}-{length}-{PREPARATION}"
    return prepare_once(
        name, lambda: fit(tokenizer, chain.from_iterable(pairs("train"))), partial(_prepare, length)
    )


def _prepare(length: int, learned: Fitted, folder: Path) -> None:
    for split in SPLITS:
        save_pairs(split, pairs(split), learned, length, folder)
    save_tokenizer(learned, folder)


TASK = translating(
    Source(
        about="Translate news from English into German (WMT14; not yet run on the real data).",
        tier="hub",
        version=1,
        model="wmt14",
        length=LENGTH,
        training=Training(
            steps=100_000, batch=256, learning_rate=7e-4, warmup=4000, evaluations=5, smoothing=0.1
        ),
        folder=splits_folder,
        hub=WMT14,
    ),
    BytePairs(32_768),
)
