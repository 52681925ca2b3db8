"""Predictions of a batch from the values at its scored positions."""

import numpy as np
from jaxtyping import Bool, Float, Int

from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions


def scored_positions(batch: Batch) -> Bool[np.ndarray, "items places"]:
    """True at the positions that have a target."""
    return batch.targets != IGNORE_INDEX


def scatter_predictions(
    batch: Batch,
    losses: Float[np.ndarray, " scored"],
    predicted: Int[np.ndarray, " scored"],
    ranks: Int[np.ndarray, " scored"],
) -> Predictions:
    """The values in their places; a loss of 0 and `IGNORE_INDEX` at positions without a target."""
    scored = scored_positions(batch)
    loss = np.zeros(batch.targets.shape, np.float32)
    classes, class_ranks = (np.full(batch.targets.shape, IGNORE_INDEX, np.int64) for _ in range(2))
    loss[scored], classes[scored], class_ranks[scored] = losses, predicted, ranks
    return Predictions(loss, classes, batch.targets, class_ranks)
