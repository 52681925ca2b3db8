"""Augmentation of training images: random shifts and flips.

Values of a pixel are in −1..1, and −1 is black.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from qkvbench.data.batch import Batch
from qkvbench.tasks.kinds.splits import patchify, unpatchify

BLACK = -1

Images = Float[np.ndarray, "items side side channels"]
AugmentImages = Callable[[Images, np.random.Generator], Images]


def augment_patches(
    batch: Batch, rng: np.random.Generator, *, augment: AugmentImages, patch: int, channels: int
) -> Batch:
    """The batch with its images augmented; inputs are patches before and after."""
    images = augment(unpatchify(batch.inputs, patch, channels), rng)
    return replace(batch, inputs=patchify(images, patch))


def shift(images: Images, rng: np.random.Generator, pixels: int, fill: float = BLACK) -> Images:
    """Each image shifted by up to so many pixels along both axes, over a background of `fill`."""
    count, side, _, _ = images.shape
    around = [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)]
    padded = np.pad(images, around, constant_values=fill)
    rows, columns = rng.integers(2 * pixels + 1, size=(2, count, 1)) + np.arange(side)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(images: Images, rng: np.random.Generator) -> Images:
    """Each image mirrored left to right with probability 1/2."""
    flipped = rng.random((len(images), 1, 1, 1)) < 0.5
    return np.where(flipped, images[:, :, ::-1], images)
