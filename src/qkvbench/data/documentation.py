"""Documentation of web services as documents: plain prose, split by service.

Services copy from each other, so a service similar to a training service is no test: services with
paragraphs in common stay together, and each paragraph is kept once.
"""

import gzip
import html
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import combinations, islice
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from qkvbench.data.cache import identity_of, prepare_once
from qkvbench.data.documents import SEPARATOR
from qkvbench.data.streams import SPLITS, Streams, byte_streams
from qkvbench.data.wheel import Wheel, open_wheel

BOTOCORE = Wheel(
    name="botocore",
    version="1.44.5",
    file="botocore-1.44.5-py3-none-any.whl",
    sha256="8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
)
# Its number is raised with every change to what is made of the same wheel.
FOLDER = "documentation-3"
# Ends of the splits, as shares of the range of hashes; the rest is for training.
ENDS = {"test": 0.05, "validation": 0.10}
# Two services are one family if this share of the paragraphs of one is in the other. Paragraphs
# that are short or in many services do not count: "The request was denied due to throttling."
SHARED_PARTS = 0.05
LONG_BYTES = 60
FEW_SERVICES = 5

_BLANK = str.maketrans(dict.fromkeys(string.punctuation + string.digits, " "))

Document = tuple[str, ...]

# Some texts have escaped tags; a <name> that a person is to fill in is no tag.
_ESCAPED = re.compile(r"&lt;(/?(?:p|li|ul|ol|note|code|i|b|a|dd|dt|important)(?: .*?)?)&gt;")
_BLOCK = re.compile(r"</?(?:p|li|ul|ol|note|important|dd|dt|dl|h2|pre|br|para)\b[^>]*>")
_MARK = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)


def documentation() -> Streams:
    """The bytes of disjoint sets of documents, a separator after each.

    Raises DataUnavailableError if the wheel or the cache is not available.
    """
    folder = prepare_once(FOLDER, lambda: split_services(services()), _prepare)
    parts = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SPLITS}
    return byte_streams(parts, identity_of(folder))


def services() -> dict[str, list[Document]]:
    """The documents of each service, in its newest version: one for each documented item."""
    with open_wheel(BOTOCORE) as archive:
        return {
            name: [document for text in _texts(archive, file) if (document := paragraphs(text))]
            for name, file in sorted(_newest(archive).items())
        }


def paragraphs(text: str) -> Document:
    """The paragraphs of a text in HTML, without tags, each on one line."""
    marked = _ESCAPED.sub(r"<\1>", text)
    found = html.unescape(html.unescape(_MARK.sub("", _BLOCK.sub("\0", marked)))).split("\0")
    return tuple(line for part in found if (line := " ".join(part.split())))


def split_services(found: Mapping[str, Sequence[Document]]) -> dict[str, dict[str, list[Document]]]:
    """The services of each split with their documents; no paragraph is in two splits.

    A family's name decides its split. Each paragraph is kept once, whatever its case and numbers:
    in training, else in validation, else in the test split.
    """
    family = families(found)
    splits: dict[str, dict[str, list[Document]]] = {name: {} for name in SPLITS}
    for name in found:
        splits[split_of(family[name])][name] = []
    seen: set[str] = set()
    for split in splits.values():
        for name, documents in split.items():
            known_by = iter(keys(part for document in found[name] for part in document))
            for document in found[name]:
                # One key after the other, of each paragraph.
                left = tuple(
                    part
                    for part, key in zip(document, islice(known_by, len(document)), strict=True)
                    if key not in seen and not seen.add(key)
                )
                if left:
                    documents.append(left)
    return splits


def split_of(family: str) -> str:
    """The split of a family of services, by the hash of its name."""
    place = int.from_bytes(sha256(family.encode()).digest()[:8]) / 2**64
    return next((split for split, end in ENDS.items() if place < end), "train")


def families(found: Mapping[str, Iterable[Document]]) -> dict[str, str]:
    """For each service the first name in its family: services that share paragraphs, transitively.

    ec2's documentation of a subnet is no test for a model that has learned that of another service.
    """
    telling: dict[str, set[str]] = {}
    for name, documents in found.items():
        parts = (part for document in documents for part in document if len(part) >= LONG_BYTES)
        telling[name] = set(keys(parts))
    holders: dict[str, list[str]] = {}
    for name in sorted(telling):
        for part in telling[name]:
            holders.setdefault(part, []).append(name)
    shared = Counter(
        pair
        for names in holders.values()
        if len(names) <= FEW_SERVICES
        for pair in combinations(names, 2)
    )
    family = {name: name for name in found}
    for (one, two), count in shared.items():
        if count >= SHARED_PARTS * min(len(telling[one]), len(telling[two])):
            older, younger = sorted((family[one], family[two]))
            family = {name: older if of == younger else of for name, of in family.items()}
    return family


def keys(parts: Iterable[str]) -> list[str]:
    """The key under which each paragraph is compared: its words in lower case, without numbers."""
    known = list(parts)
    lines = "\n".join(known).lower().translate(_BLANK).split("\n")
    words = (" ".join(line.split()) for line in lines)
    return [key or part for key, part in zip(words, known, strict=False)]


def _prepare(found: Mapping[str, Mapping[str, Sequence[Document]]], folder: Path) -> None:
    for split, each in found.items():
        documents = {"\n".join(part).encode() for parts in each.values() for part in parts}
        # By their hashes, so that any prefix is a fair sample of the split's services.
        order = sorted(documents, key=lambda document: sha256(document).digest())
        stream = b"".join(document + bytes([SEPARATOR]) for document in order)
        np.save(folder / f"{split}.npy", np.frombuffer(stream, np.uint8))


def _newest(archive: ZipFile) -> dict[str, str]:
    """The file of each service, of its newest version; versions are dates."""
    files = sorted(name for name in archive.namelist() if name.endswith("/service-2.json.gz"))
    return {name.split("/")[-3]: name for name in files}


def _texts(archive: ZipFile, file: str) -> list[str]:
    """Every text under "documentation" in a description of a service."""
    found: list[str] = []

    def note(pairs: dict[str, object]) -> None:
        if isinstance(text := pairs.get("documentation"), str):
            found.append(text)

    json.loads(gzip.decompress(archive.read(file)), object_hook=note)
    return found
