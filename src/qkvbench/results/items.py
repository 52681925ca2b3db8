"""The test split item by item: what each item scored, small enough to stand in a record."""

import binascii
from base64 import b64decode, b64encode
from typing import Self

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

# More items than this are kept as means of consecutive ones, so that a record stays small.
MOST = 4096


class ItemScores(BaseModel):
    """Scores of the test items in the unit of the task's metric, whose mean is the run's score.

    ``values`` and ``weights`` are base64 of little-endian float32: a score, and how many scored
    places it is the mean of, for each block of consecutive items. ``weights`` is None where all
    blocks weigh the same. ``items`` counts items, of which a block may hold several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int
    values: str = Field(max_length=8 * MOST)
    weights: str | None = Field(default=None, max_length=8 * MOST)

    @classmethod
    def of(
        cls, scores: Float[np.ndarray, " items"], places: Float[np.ndarray, " items"]
    ) -> "ItemScores":
        """Scores of items, each the mean over so many places; no item may be without a place."""
        cuts = np.arange(0, len(scores), -(-len(scores) // MOST))
        weights = np.add.reduceat(places, cuts)
        values = np.add.reduceat(scores * places, cuts) / weights
        alike = bool((weights == weights[0]).all())
        return cls(
            items=len(scores), values=_packed(values), weights=None if alike else _packed(weights)
        )

    def arrays(self) -> tuple[Float[np.ndarray, " blocks"], Float[np.ndarray, " blocks"]]:
        """Scores and weights; a weight is a share of all places."""
        values = _unpacked(self.values)
        weights = np.ones(len(values)) if self.weights is None else _unpacked(self.weights)
        return values, weights / weights.sum()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        """Numbers that can be read, as many scores as weights."""
        values = _unpacked(self.values)
        weights = np.ones(len(values)) if self.weights is None else _unpacked(self.weights)
        if len(values) != len(weights) or not 0 < len(values) <= self.items:
            raise ValueError("the items' scores and weights are not equally many")
        if not (np.isfinite(values).all() and np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError("the items' scores are no finite numbers")
        return self


def _packed(values: Float[np.ndarray, " blocks"]) -> str:
    return b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> Float[np.ndarray, " blocks"]:
    try:
        return np.frombuffer(b64decode(text, validate=True), "<f4").astype(np.float64)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the items' scores cannot be read: {error}") from None
