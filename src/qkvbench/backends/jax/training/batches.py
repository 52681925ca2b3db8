"""Batches as arrays of few different shapes, because each shape is compiled for."""

from typing import Any, NamedTuple

import numpy as np

from qkvbench.data.batch import IGNORE_INDEX, Batch

# The number of scored positions is padded to one of so many sizes per batch shape: at most as many
# compilations, and at most an eighth of the work is wasted.
SIZES = 8


class BatchArrays(NamedTuple):
    """A batch for a compiled function: NumPy arrays outside of it, JAX arrays inside.

    ``extra_inputs`` are lengths and a second input. ``places`` are the positions to score, of all
    items together; None is all of them. ``valid`` is False where they are padding, which repeats
    the first position.
    """

    inputs: Any
    extra_inputs: tuple[Any, ...]
    targets: Any
    valid: Any
    places: Any


def places_of(batch: Batch) -> int | None:
    """How many places `to_arrays` makes of the scored positions; None if all positions are."""
    total, scored = batch.targets.size, int((batch.targets != IGNORE_INDEX).sum())
    step = -(-total // SIZES)
    return None if scored in (0, total) else min(total, -(-scored // step) * step)


def to_arrays(batch: Batch, count: int | None = None) -> BatchArrays:
    """The batch with its scored positions, padded to one of `SIZES` sizes, or to `count`."""
    targets = batch.targets.ravel().astype(np.int32)  # (items · positions,)
    scored = np.flatnonzero(targets != IGNORE_INDEX)
    inputs, extra_inputs = _plain(batch.inputs), _extra_inputs(batch)
    if not len(scored):
        targets = np.zeros_like(targets)
        return BatchArrays(inputs, extra_inputs, targets, np.zeros(len(targets), bool), None)
    count = count or places_of(batch)
    if count is None:
        return BatchArrays(inputs, extra_inputs, targets, np.ones(len(targets), bool), None)
    places = np.full(count, scored[0], np.int32)
    places[: len(scored)] = scored
    valid = np.arange(count) < len(scored)
    return BatchArrays(inputs, extra_inputs, targets[places], valid, places)


def input_arrays(batch: Batch) -> BatchArrays:
    """The batch without targets."""
    none = np.zeros(0, np.int32)
    return BatchArrays(_plain(batch.inputs), _extra_inputs(batch), none, none.astype(bool), None)


def _extra_inputs(batch: Batch) -> tuple[np.ndarray | None, ...]:
    lengths = _plain(batch.lengths)
    if batch.second is None:
        return (lengths,)
    return lengths, _plain(batch.second.inputs), _plain(batch.second.lengths)


def _plain(array: np.ndarray | None) -> np.ndarray | None:
    """Integers in 32 bits, other numbers in fp32."""
    if array is None:
        return None
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
