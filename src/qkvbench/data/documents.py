"""Documents packed into streams, one for each split: no document is in two of them."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from itertools import pairwise

import numpy as np

SEPARATOR = 0


def pack(documents: Iterable[bytes], shares: Mapping[str, float]) -> dict[str, bytes]:
    """The stream of each split: its distinct documents, in the order of their hashes.

    A document's hash alone decides its split and its position, so any prefix is a fair sample. A
    zero byte, which no document may contain, follows each.
    """
    order = sorted((sha256(document).digest(), document) for document in set(documents) if document)
    places = [int.from_bytes(digest[:8]) / 2**64 for digest, _ in order]
    inner = np.searchsorted(places, np.cumsum(list(shares.values())))[:-1]
    bounds = pairwise([0, *inner, len(order)])
    return {
        name: b"".join(document + bytes([SEPARATOR]) for _, document in order[start:end])
        for name, (start, end) in zip(shares, bounds, strict=True)
    }
