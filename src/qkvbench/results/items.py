"""Scores of the items of a test split, compact enough for a record."""

import binascii
from base64 import b64decode, b64encode
from typing import Self

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

# More items than this are averaged over consecutive blocks, to limit the size of a record.
MAX_BLOCKS = 4096


class ItemScores(BaseModel):
    """Scores of the test items in the unit of the task's metric; their mean is the run's score.

    ``values`` and ``weights`` are base64 of little-endian float32: for each block of consecutive
    items its mean score and its number of scored positions. ``weights`` is None if all blocks weigh
    the same. ``items`` counts items, not blocks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int
    values: str = Field(max_length=8 * MAX_BLOCKS)
    weights: str | None = Field(default=None, max_length=8 * MAX_BLOCKS)

    @classmethod
    def from_scores(
        cls, scores: Float[np.ndarray, " items"], positions: Float[np.ndarray, " items"]
    ) -> "ItemScores":
        """Scores of items, each the mean over its number of scored positions (at least one)."""
        starts = np.arange(0, len(scores), -(-len(scores) // MAX_BLOCKS))
        weights = np.add.reduceat(positions, starts)
        values = np.add.reduceat(scores * positions, starts) / weights
        equal = bool((weights == weights[0]).all())
        return cls(
            items=len(scores), values=_encode(values), weights=None if equal else _encode(weights)
        )

    def arrays(self) -> tuple[Float[np.ndarray, " blocks"], Float[np.ndarray, " blocks"]]:
        """Scores and weights; the weights sum to 1."""
        values = _decode(self.values)
        weights = np.ones(len(values)) if self.weights is None else _decode(self.weights)
        return values, weights / weights.sum()

    @model_validator(mode="after")
    def _check_arrays(self) -> Self:
        """Refuse arrays that cannot be decoded, differ in length or are not finite."""
        values = _decode(self.values)
        weights = np.ones(len(values)) if self.weights is None else _decode(self.weights)
        if len(values) != len(weights) or not 0 < len(values) <= self.items:
            raise ValueError("the items' scores and weights differ in number")
        if not (np.isfinite(values).all() and np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError("the items' scores are not finite numbers")
        return self


def _encode(values: Float[np.ndarray, " blocks"]) -> str:
    return b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _decode(text: str) -> Float[np.ndarray, " blocks"]:
    try:
        return np.frombuffer(b64decode(text, validate=True), "<f4").astype(np.float64)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the items' scores cannot be read: {error}") from None
