"""A classification task from a folder of images."""

from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from qkvbench.data import own
from qkvbench.tasks import Task
from qkvbench.tasks.kinds.images import Source, image_classification, prepare
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits
from qkvbench.tasks.own.content import CLASSIFYING, Content, most_frequent

# The side of a patch for each side of an image: 16, 16 and 64 patches.
PATCHES = {8: 2, 16: 4, 32: 4}


def image_task(folder: Path) -> Task:
    """Name the class of an image."""
    name = own.shown(str(folder))
    found = own.list_images(folder)
    digest = sha256()
    for label, path in found:
        # Of each file its hash, so that the end of a name cannot be read as content.
        inner = sha256(own.content(path, own.IMAGE_BYTES)).hexdigest()
        digest.update(f"{len(label)} {label} {inner}\n".encode())
    content = Content("images", digest.hexdigest())

    def make(making: Path) -> None:
        pixels = own.images([path for _, path in found]).pixels
        contents = [image.tobytes() for image in pixels]
        places = [f"{label}/{path.name}" for label, path in found]
        right = own.number_labels(name, contents, [label for label, _ in found], places)
        prepare(pixels[right.kept], right.labels, making)

    prepared = content.prepared(make)
    _, _, side, channels = np.load(prepared / "test.pixels.npy", mmap_mode="r").shape
    classes = len({label for label, _ in found})
    return image_classification(
        Source(
            about=f"Name the class of an image of {name}: {classes} classes.",
            tier="own",
            version=content.version,
            model="own-images",
            side=side,
            channels=channels,
            patch=PATCHES[side],
            classes=classes,
            chance=most_frequent(prepared),
            training=CLASSIFYING,
            load=partial(load_splits, prepared, partial(PatchedImages, patch=PATCHES[side])),
        )
    )
