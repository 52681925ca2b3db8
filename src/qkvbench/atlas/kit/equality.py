"""How far our layers are from the library's on the same weights, as it was measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("equalities.json")
# In fp64 only the order of sums differs. A layer whose positions the library rounds says so.
BOUND, ROUNDED_BOUND = 1e-9, 1e-6


@dataclass(frozen=True)
class Equality:
    """Differences of one layer, the largest as a share of the largest output.

    By the way in which it is run: over whole sequences, padded, and token by token over a cache.
    ``fp64`` is the library's code with fp64 wherever it says fp32, ``fp32`` as it is.
    """

    fp64: Mapping[str, float]
    fp32: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest difference in fp64."""
        return max(self.fp64.values())


@cache
def equalities() -> Mapping[str, Equality]:
    """Every measured layer, by `Form.key`."""
    measured = json.loads(FILE.read_text(encoding="utf-8"))["layers"]
    return {key: Equality(**each) for key, each in measured.items()}


def library() -> str:
    """The library with which they were measured, and its version."""
    return json.loads(FILE.read_text(encoding="utf-8"))["library"]
