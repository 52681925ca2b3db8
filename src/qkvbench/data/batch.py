"""The values that pass between a task and a backend: batches and predictions."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Num

IGNORE_INDEX = -1


@dataclass(frozen=True)
class Sequences:
    """A second input for each item: the source of an encoder-decoder, the texts of two towers."""

    inputs: Num[np.ndarray, "items positions *features"]
    lengths: Int[np.ndarray, " items"] | None = None


@dataclass(frozen=True)
class Batch:
    """Inputs and the right class at each position; `IGNORE_INDEX` at positions without a target.

    ``inputs`` are token ids (items, positions) or vectors (items, positions, features);
    ``targets`` are (items, positions), or (items, 1) for one prediction per item. ``lengths`` says
    how many of an item's positions are read, from the first on; None means all of them.
    ``second`` is the second input of a model with two; it has as many items.
    """

    inputs: Num[np.ndarray, "items positions *features"]
    targets: Int[np.ndarray, "items targets"]
    lengths: Int[np.ndarray, " items"] | None = None
    second: Sequences | None = None

    def parts(self, count: int) -> "Iterator[Batch]":
        """The batch cut into `count` parts in order, whose sizes differ by one item at most."""
        bounds = [len(self.inputs) * part // count for part in range(count + 1)]
        for items in (slice(*pair) for pair in pairwise(bounds)):
            lengths = None if self.lengths is None else self.lengths[items]
            second = self.second
            if second is not None:
                read = None if second.lengths is None else second.lengths[items]
                second = Sequences(second.inputs[items], read)
            yield Batch(self.inputs[items], self.targets[items], lengths, second)


@dataclass(frozen=True)
class Predictions:
    """For each position of some items the loss in nats and the likeliest class.

    ``ranks`` counts the other classes that are at least as likely as the right one, so a tie
    counts as wrong.
    """

    loss: Float[np.ndarray, "items targets"]
    predicted: Int[np.ndarray, "items targets"]
    targets: Int[np.ndarray, "items targets"]
    ranks: Int[np.ndarray, "items targets"]


@dataclass(frozen=True)
class Search:
    """Beam search for the likeliest text, with `beams` beams; one beam is greedy.

    A text begins with the token `begin`, which does not belong to it, and ends with `end`, or
    after `longest` tokens. Texts of different length are compared by log P / lp, where
    lp = ((5 + tokens) / 6) ^ ``penalty`` and `end` counts as a token (arXiv:1609.08144, eq. 14,
    without its term for coverage).
    """

    begin: int
    end: int
    longest: int
    beams: int = 4
    penalty: float = 0.6

    def __post_init__(self) -> None:
        """Refuse a search that would find nothing, or whose penalty is a reward."""
        if self.beams < 1 or self.longest < 1:
            raise ValueError(
                f"A search needs a beam and a token; here are {self.beams} beams and "
                f"{self.longest} tokens. Take 1 or more of each."
            )
        if self.penalty < 0:
            raise ValueError(
                f"A length penalty of {self.penalty:g} would prefer short texts twice; take 0 "
                "(none) or more, such as 0.6."
            )


@runtime_checkable
class Split(Protocol):
    """A fixed set of items, numbered from 0."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The items with these numbers."""
        ...


@runtime_checkable
class ImageSplit(Split, Protocol):
    """A split whose inputs are images that a feature extractor can read first, each once."""

    def images(self) -> Float[np.ndarray, "images features"]:
        """Each image once, as the extractor reads it, one position after the other."""
        ...

    def with_features(self, vectors: Float[np.ndarray, "images features"]) -> "ImageSplit":
        """The same items, with these vectors in place of the images."""
        ...
