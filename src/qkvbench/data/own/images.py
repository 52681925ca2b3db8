"""Images out of a folder that has one folder for each class."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.cache import DataRefusedError
from qkvbench.data.own.files import content, missing_error, shown

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
}
# What systems leave in folders, besides files whose names begin with a dot.
IGNORED = ("thumbs.db", "desktop.ini")
SIDES = (8, 16, 32)
IMAGE_BYTES = 50 * 10**6
# A file of a few kilobytes may unfold to gigabytes: its size is read before its pixels are.
IMAGE_PIXELS = 50 * 10**6
MOST_IMAGES = 50_000
# More than eight bits a grey: turned into eight, they would be cut off without a word.
DEEP = ("I", "F")


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one side, all grey or all in colour."""

    pixels: UInt8[np.ndarray, "items side side channels"]


def list_images(folder: Path) -> list[tuple[str, Path]]:
    """The class and the path of each image, in the order of their names."""
    name = shown(str(folder))
    if not folder.is_dir():
        raise missing_error(folder)
    classes = [path for path in _visible(folder, folder) if path.is_dir()]
    if not classes:
        raise DataRefusedError(
            f"'{name}' has no folders in it. Images lie in one folder for each class, as in\n"
            f"{name}/cat/1.png and {name}/dog/1.png."
        )
    found = [(path.name, image) for path in classes for image in _visible(path, folder)]
    if not found:
        raise DataRefusedError(f"The folders in '{name}' are empty.")
    for label, image in found:
        if not image.is_file() or image.suffix.lower() not in FORMATS:
            raise DataRefusedError(
                f"'{shown(f'{label}/{image.name}')}' in '{name}' is no image; these are read: "
                f"{' '.join(FORMATS)}.\nTake it out."
            )
    if len(found) > MOST_IMAGES:
        raise DataRefusedError(
            f"'{name}' has {len(found):,} images; they are held in memory, so at most "
            f"{MOST_IMAGES:,} are read."
        )
    return found


def images(paths: Sequence[Path]) -> Images:
    """The images at one size: the smallest of `SIDES` that none is larger than, or the last.

    What is not square is stretched; what is transparent stands on white.
    """
    sizes = [_open(path).size for path in paths]
    largest = max(max(size) for size in sizes)
    side = next((each for each in SIDES if each >= largest), SIDES[-1])
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        row[:] = _pixels(path, side)
    grey = bool((pixels == pixels[..., :1]).all())
    return Images(pixels[..., :1].copy() if grey else pixels)


def _visible(place: Path, root: Path) -> list[Path]:
    """The files in a folder, by name; a link out of the root is refused, not followed."""
    within = root.resolve()
    try:
        found = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataRefusedError(f"'{shown(str(place))}' cannot be read: {error.strerror}.") from None
    for path in found:
        try:
            target = path.resolve(strict=False)
        except (OSError, RuntimeError):
            raise DataRefusedError(
                f"'{shown(str(path))}' is a link that leads back to itself. Take it out."
            ) from None
        if not target.is_relative_to(within):
            raise DataRefusedError(
                f"'{shown(str(path))}' is a link out of '{shown(str(root))}'; such links are not "
                "followed.\nCopy what it shows, or take it out."
            )
    return [path for path in found if path.name.lower() not in IGNORED]


def _open(path: Path) -> Any:
    """The image, of which only the head has been read."""
    from PIL import Image

    formats = sorted(set(FORMATS.values()))
    try:
        with warnings.catch_warnings():
            # The bound below is lower, and says what to do.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content(path, IMAGE_BYTES)), formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except (OSError, ValueError, SyntaxError):
        raise _unreadable(path) from None
    if image.width * image.height > IMAGE_PIXELS:
        raise _too_large(path)
    if image.mode.split(";")[0] in DEEP:
        raise DataRefusedError(
            f"'{shown(str(path))}' has more than 8 bits a pixel and channel; convert it to 8."
        )
    return image


def _pixels(path: Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    from PIL import Image, ImageOps

    image = _open(path)
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            seen = upright.convert("RGBA")
            white = Image.new("RGBA", seen.size, "white")
            upright = Image.alpha_composite(white, seen)
        colour = upright.convert("RGB")
        return np.asarray(colour.resize((side, side), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, EOFError):
        raise _unreadable(path) from None


def _unreadable(path: Path) -> DataRefusedError:
    return DataRefusedError(
        f"'{shown(str(path))}' cannot be read as an image: it is damaged, or something else than "
        "its name says.\nMend it or take it out."
    )


def _too_large(path: Path) -> DataRefusedError:
    return DataRefusedError(
        f"'{shown(str(path))}' has too many pixels: at most {IMAGE_PIXELS:,} are read.\n"
        f"Make it smaller; the task has {SIDES[-1]} by {SIDES[-1]} at most anyway."
    )
