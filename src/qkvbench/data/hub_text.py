"""Texts of the Hugging Face Hub as streams of bytes: whole documents, a zero after each."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from qkvbench.data.cache import identity_of, keep, lookup
from qkvbench.data.documents import SEPARATOR
from qkvbench.data.growing_array import GrowingArray
from qkvbench.data.hub import HubData
from qkvbench.data.hub_rows import rows
from qkvbench.data.streams import SPLITS, Streams, byte_streams

# Its number is raised with every change to what is made of the same files.
PREPARATION = 1
# A title of WikiText: one equals sign on each side. Its sections have more.
_EDGE, _SECTION = " = ", " = = "

# Columns of the card: text, a line of an article or an empty one.
WIKITEXT_103 = HubData(
    repository="Salesforce/wikitext",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    files={split: f"wikitext-103-raw-v1/{split}-*.parquet" for split in SPLITS},
    columns=("text",),
    download_bytes=315e6,
    prepared_bytes=550e6,
    licence="CC-BY-SA-3.0, GFDL",
)


@dataclass(frozen=True)
class FineWebEdu:
    """The first documents of FineWeb-Edu's sample of 10B tokens (arXiv:2406.17557).

    So many ``bytes`` of text are read; None is all of it. The sample has one split: a document's
    hash decides whether it is for tests, for validation or for training.
    """

    name: str
    bytes: int | None
    shares: Mapping[str, float]


# 9,672,101 documents. Columns of the card: text, id, dump, url, file_path, language,
# language_score, token_count, score, int_score.
SAMPLE = HubData(
    repository="HuggingFaceFW/fineweb-edu",
    revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    files={"train": "sample/10BT/*.parquet"},
    columns=("text",),
    download_bytes=28_518_193_415,
    prepared_bytes=50e9,
    licence="ODC-By-1.0",
)


def wikitext() -> Streams:
    """The articles of WikiText-103 in its raw form, in the published splits (arXiv:1609.07843)."""

    def make(folder: Path) -> None:
        for split in SPLITS:
            lines = (row["text"] for row in rows(WIKITEXT_103, split))
            with GrowingArray(folder / f"{split}.npy", np.uint8) as file:
                for article in articles(lines):
                    file.append(_as_bytes(article))

    return _streams(f"wikitext-103-{WIKITEXT_103.revision[:8]}-{PREPARATION}", make)


def articles(lines: Iterable[str]) -> Iterator[str]:
    """The articles, each a document that begins with its title."""
    article: list[str] = []
    for line in lines:
        if line.startswith(_EDGE) and not line.startswith(_SECTION) and article:
            yield "".join(article)
            article = []
        # Empty lines stand around titles alone.
        if line.strip():
            article.append(line if line.endswith("\n") else line + "\n")
    if article:
        yield "".join(article)


def fineweb_edu(part: FineWebEdu) -> Streams:
    """The documents in the order of the files, split by their hashes."""

    def make(folder: Path) -> None:
        left = part.bytes
        with ExitStack() as stack:
            files = {
                split: stack.enter_context(GrowingArray(folder / f"{split}.npy", np.uint8))
                for split in SPLITS
            }
            for row in rows(SAMPLE, "train"):
                document = _as_bytes(row["text"])
                files[_split(document, part.shares)].append(document)
                left = None if left is None else left - len(document)
                if left is not None and left <= 0:
                    break

    return _streams(f"{part.name}-{SAMPLE.revision[:8]}-{PREPARATION}", make)


def _split(document: np.ndarray, shares: Mapping[str, float]) -> str:
    place = int.from_bytes(sha256(document.tobytes()).digest()[:8]) / 2**64
    ends = np.cumsum(list(shares.values()))[:-1]
    return list(shares)[int(np.searchsorted(ends, place, side="right"))]


def _as_bytes(text: str) -> np.ndarray:
    """The bytes of a document, without zeros but for the one that ends it."""
    return np.frombuffer(text.replace("\0", "").encode() + bytes([SEPARATOR]), np.uint8)


def _streams(name: str, make: Callable[[Path], None]) -> Streams:
    folder = lookup(name) or keep(name, make)
    parts = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    return byte_streams(parts, identity_of(folder))
