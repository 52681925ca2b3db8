"""Film reviews with their verdict: the sentences of one collection, the documents of another."""

import csv
from io import TextIOWrapper
from typing import Literal

from qkvbench.data.reviews import REVIEWS, Source, clean
from qkvbench.data.wheel import open_wheel

Collection = Literal["rotten_tomatoes", "imdb"]


def labelled_reviews(
    collection: Collection, source: Source = REVIEWS
) -> tuple[list[str], list[int]]:
    """Distinct texts in the order of the table, and for each 1 for praise, 0 for blame.

    Raises DataUnavailableError if the wheel is not available.
    """
    found: dict[str, set[int]] = {}
    with open_wheel(source.wheel) as archive, archive.open(source.member) as member:
        for row in csv.DictReader(TextIOWrapper(member, encoding="utf-8", newline="")):
            if row["source"] == collection and (text := clean(row["text"])):
                found.setdefault(text, set()).add(int(row["label"]))
    # A text with both verdicts would have none; these collections have no such text.
    clear = {text: verdicts.pop() for text, verdicts in found.items() if len(verdicts) == 1}
    return list(clear), list(clear.values())
