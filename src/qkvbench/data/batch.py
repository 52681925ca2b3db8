"""What passes between a task and a backend: batches, and what a model said of them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Num

UNSCORED = -1


@dataclass(frozen=True)
class Batch:
    """Inputs and the class that is right at each place; `UNSCORED` where nothing is predicted.

    ``inputs`` are token ids (items, positions) or vectors (items, positions, features);
    ``targets`` are (items, positions), or (items, 1) for one prediction per item. ``lengths`` says
    how many of an item's positions are read, from the first on; None means all of them.
    """

    inputs: Num[np.ndarray, "items positions *features"]
    targets: Int[np.ndarray, "items places"]
    lengths: Int[np.ndarray, " items"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a model said of some items: at each place the loss in nats and the likeliest class."""

    loss: Float[np.ndarray, "items places"]
    predicted: Int[np.ndarray, "items places"]
    targets: Int[np.ndarray, "items places"]


@runtime_checkable
class Split(Protocol):
    """A fixed set of items, numbered from 0."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The items with these numbers."""
        ...
