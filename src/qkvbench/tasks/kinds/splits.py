"""Kinds of splits: items in arrays, images, and windows on a stream of tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer, Num, UInt8

from qkvbench.data.batch import IGNORE_INDEX, Batch, Sequences, Split
from qkvbench.data.cache import identity_of
from qkvbench.tasks import Data

# Ends of the splits of each class, in percent: a fifth is for tests, a tenth for validation.
ENDS = {"test": 20, "validation": 30, "train": 100}
# Items of the validation split that are scored during training: a fair sample, soon scored.
VALIDATION = 1000


@dataclass(frozen=True, eq=False)
class Items:
    """Items in arrays; ``lengths`` is the number of positions of each that are read.

    ``second`` and ``second_lengths`` are the same for the second input, if there is one.
    """

    inputs: Num[np.ndarray, "items positions *features"]
    targets: Int[np.ndarray, "items targets"]
    lengths: Int[np.ndarray, " items"] | None = None
    second: Num[np.ndarray, "items positions2 *features2"] | None = None
    second_lengths: Int[np.ndarray, " items"] | None = None

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.inputs)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The items with these numbers."""
        inputs, lengths = _read(self.inputs, self.lengths, indices)
        second = None
        if self.second is not None:
            second = Sequences(*_read(self.second, self.second_lengths, indices))
        return Batch(inputs, np.array(self.targets[indices]), lengths, second)


def _read(
    inputs: np.ndarray, lengths: np.ndarray | None, indices: Int[np.ndarray, " items"]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The items with these numbers, and their lengths."""
    # 16 bits on disk; the token ids of a batch have 64.
    found = np.array(inputs[indices])
    found = found.astype(np.int64) if found.dtype == np.uint16 else found
    return found, None if lengths is None else np.array(lengths[indices])


@dataclass(frozen=True, eq=False)
class PatchedImages:
    """Images of one size, each a sequence of square patches with values in −1..1."""

    pixels: UInt8[np.ndarray, "items side side channels"]
    targets: Int[np.ndarray, "items one"]
    patch: int

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The images with these numbers."""
        pixels = patchify(np.array(self.pixels[indices]), self.patch)
        return Batch((pixels / 127.5 - 1).astype(np.float32), np.array(self.targets[indices]))


@dataclass(frozen=True, eq=False)
class UnmaskedTexts:
    """Pieces of text, each token its own target: inputs are masked later."""

    inputs: Integer[np.ndarray, "items positions"]
    lengths: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self.inputs)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The pieces with these numbers."""
        tokens, lengths = np.array(self.inputs[indices], np.int64), np.array(self.lengths[indices])
        read = np.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(tokens, np.where(read, tokens, IGNORE_INDEX), lengths)


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of `length` tokens that follow each other in a stream; targets are the next tokens.

    Each token of the stream but the first is predicted in one window, so nothing is padding.
    """

    stream: Integer[np.ndarray, " tokens"]
    length: int

    def __len__(self) -> int:
        """How many whole windows there are."""
        return (len(self.stream) - 1) // self.length

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The windows with these numbers."""
        # Shape: items by length + 1.
        positions = indices[:, None] * self.length + np.arange(self.length + 1)
        tokens = self.stream[positions].astype(np.int64)
        return Batch(tokens[:, :-1], tokens[:, 1:])


def split_in_order(
    inputs: Num[np.ndarray, "items positions *features"],
    targets: Int[np.ndarray, "items targets"],
    *,
    validation: int,
    test: int,
) -> Data:
    """The first items are the test split, the next ones validation, the rest is for training."""
    ends = np.cumsum([test, validation])
    parts = zip(np.split(inputs, ends), np.split(targets, ends), strict=True)
    first, second, rest = (Items(*part) for part in parts)
    return Data(train=rest, validation=second, test=first, identity=identity(inputs, targets))


def stratify(
    contents: Sequence[bytes], labels: Sequence[int], ends: Mapping[str, int] = ENDS
) -> dict[str, list[int]]:
    """The numbers of the examples of each split, in the order of the hashes of their contents.

    Each class is in all splits. A prefix of the test split is a fair sample; the training split
    begins with the classes whose other shares are full first.
    """
    hashes = [sha256(content).digest() for content in contents]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    sizes = np.bincount(labels)
    seen = np.zeros_like(sizes)
    parts: dict[str, list[int]] = {name: [] for name in ends}
    # Rounded up, so that no class is missing from a split.
    bounds = -(-np.array(list(ends.values()))[:, None] * sizes // 100)
    for number in order:
        label = labels[number]
        split = int(np.searchsorted(bounds[:, label], seen[label], side="right"))
        parts[list(ends)[split]].append(number)
        seen[label] += 1
    parts["validation"] = parts["validation"][:VALIDATION]
    return parts


def patchify(
    pixels: Num[np.ndarray, "items side side channels"], patch: int
) -> Num[np.ndarray, "items patches features"]:
    """Images cut into squares, row by row, each a vector of its pixels."""
    count, side, _, channels = pixels.shape
    along = side // patch
    cut = pixels.reshape(count, along, patch, along, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count, along**2, patch**2 * channels)


def unpatchify(
    cut: Num[np.ndarray, "items patches features"], patch: int, channels: int
) -> Num[np.ndarray, "items side side channels"]:
    """The inverse of `patchify`: the images of these patches."""
    count, squares, _ = cut.shape
    along = isqrt(squares)
    rows = cut.reshape(count, along, along, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return rows.reshape(count, along * patch, along * patch, channels)


def save_splits(folder: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the arrays of each split into a folder."""
    for split, arrays in splits.items():
        for name, array in arrays.items():
            np.save(folder / f"{split}.{name}.npy", array)


def load_splits(folder: Path, make: Callable[..., Split] = Items) -> Data:
    """The splits that `save_splits` wrote, each made from its arrays by name, memory-mapped."""

    def split(name: str) -> Split:
        files = folder.glob(f"{name}.*.npy")
        return make(**{file.name.split(".")[1]: np.load(file, mmap_mode="r") for file in files})

    return Data(split("train"), split("validation"), split("test"), identity=identity_of(folder))


def identity(*arrays: np.ndarray) -> str:
    """A hash of the arrays' content, shapes and types."""
    found = sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
