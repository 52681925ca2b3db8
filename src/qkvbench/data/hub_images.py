"""Images of the Hugging Face Hub as squares of one size, each with its class."""

from collections.abc import Iterable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.growing_array import GrowingArray

# Channels of an image: one of grey, or three of red, green and blue.
Mode = Literal["L", "RGB"]


def save_images(
    examples: Iterable[tuple[str, bytes, int]],
    splits: Iterable[str],
    folder: Path,
    *,
    side: int,
    mode: Mode,
) -> None:
    """Save the pixels and classes of images, each with its split and given as a file."""
    shape = (side, side, len(mode))
    with ExitStack() as files:
        pixels, targets = (
            {
                split: files.enter_context(GrowingArray(folder / f"{split}.{name}.npy", kind, row))
                for split in splits
            }
            for name, kind, row in (("pixels", np.uint8, shape), ("targets", np.int64, (1,)))
        )
        for split, file, label in examples:
            pixels[split].append(square(file, side=side, mode=mode)[None])
            targets[split].append(np.array([[label]]))


def square(file: bytes, *, side: int, mode: Mode) -> UInt8[np.ndarray, "side side channels"]:
    """The middle of an image, as large as fits, with `side` × `side` pixels."""
    # Imported here: tasks are listed without it.
    from PIL import Image, ImageOps

    with Image.open(BytesIO(file)) as image:
        found = ImageOps.fit(image.convert(mode), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(found, np.uint8).reshape(side, side, len(mode))
