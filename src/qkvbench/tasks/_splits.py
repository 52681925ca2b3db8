"""The two shapes of a split: items that lie in arrays, and windows on a stream of tokens."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Int, Integer, Num

from qkvbench.data.batch import Batch
from qkvbench.tasks import Data


@dataclass(frozen=True, eq=False)
class Items:
    """Items that lie in two arrays."""

    inputs: Num[np.ndarray, "items positions *features"]
    targets: Int[np.ndarray, "items places"]

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.inputs)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The items with these numbers."""
        return Batch(self.inputs[indices], self.targets[indices])


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of `length` tokens that follow each other in a stream; the next token is right.

    Each token of the stream but the first is predicted in one window, so nothing is padding.
    """

    stream: Integer[np.ndarray, " tokens"]
    length: int

    def __len__(self) -> int:
        """How many whole windows there are."""
        return (len(self.stream) - 1) // self.length

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The windows with these numbers."""
        places = indices[:, None] * self.length + np.arange(self.length + 1)
        tokens = self.stream[places].astype(np.int64)
        return Batch(tokens[:, :-1], tokens[:, 1:])


def divided(
    inputs: Num[np.ndarray, "items positions *features"],
    targets: Int[np.ndarray, "items places"],
    *,
    validation: int,
    test: int,
) -> Data:
    """The first items are the test split, the next ones validation, the rest is for training."""
    ends = np.cumsum([test, validation])
    parts = zip(np.split(inputs, ends), np.split(targets, ends), strict=True)
    first, second, rest = (Items(*part) for part in parts)
    return Data(train=rest, validation=second, test=first, identity=identity(inputs, targets))


def identity(*arrays: np.ndarray) -> str:
    """A hash of what is in the arrays, their shapes and types."""
    found = sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
