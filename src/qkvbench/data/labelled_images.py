"""Grey images of 28 by 28 pixels, each with its class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

SIDE = 28


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and the numbers of their classes."""

    pixels: UInt8[np.ndarray, "items 28 28 1"]
    labels: Int[np.ndarray, " items"]

    def distinct(self) -> "LabelledImages":
        """The first of images that are equal in every pixel, in the same order."""
        _, first = np.unique(self.pixels.reshape(len(self.pixels), -1), axis=0, return_index=True)
        first.sort()
        return LabelledImages(self.pixels[first], self.labels[first])
