"""Name one of 1,000 things in a photograph: ImageNet-1k (Russakovsky et al., arXiv:1409.0575).

The labels of the published test split are not public: its validation split is scored, as is usual,
and a part of the training split on the way. An image is its middle, 224 × 224 pixels, in patches of
16: `imagenet-1k@16` has 16 patches, of 64 × 64 pixels. Training images are mirrored and shifted;
the stronger augmentation of published vision encoders is not here.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from math import isqrt
from pathlib import Path

import numpy as np

from qkvbench.data.cache import DataRefusedError, keep, lookup
from qkvbench.data.hub import HubData
from qkvbench.data.hub_images import save_images
from qkvbench.data.hub_rows import rows
from qkvbench.experiment import Training
from qkvbench.tasks import Data, Task
from qkvbench.tasks.kinds.augment import Images, flip, shift
from qkvbench.tasks.kinds.images import Source, image_classification
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits

PATCH = 16
PATCHES = 196
CLASSES = 1000
# 1,281,167 images to train with, and 50,000.
IMAGES = 1_331_167
# Columns of the card: image (bytes, path), label.
IMAGENET = HubData(
    repository="ILSVRC/imagenet-1k",
    revision="49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
    files={split: f"data/{split}-*.parquet" for split in ("train", "validation")},
    columns=("image", "label"),
    prepared_bytes=IMAGES * (PATCHES * PATCH**2 * 3 + 8),
    licence="ImageNet's terms: research, not commercial",
    gated=True,
)


def task(patches: int = PATCHES) -> Task:
    """The task on images of so many patches; DataRefusedError if they make no square."""
    along = isqrt(patches)
    if along**2 != patches or not 4 <= patches <= PATCHES:
        raise DataRefusedError(
            f"{patches} patches of {PATCH} × {PATCH} pixels make no square image here; write the "
            f"square of a number from 2 to {isqrt(PATCHES)}, as in imagenet-1k@16."
        )
    found = image_classification(
        Source(
            about="Name one of 1,000 things (ImageNet-1k; not yet run on the real data).",
            tier="hub",
            version=1,
            model="imagenet-1k",
            side=along * PATCH,
            channels=3,
            patch=PATCH,
            classes=CLASSES,
            chance=1 / CLASSES,
            # 90 epochs.
            training=Training(
                steps=112_000, batch=1024, learning_rate=1e-3, warmup=10_000, weight_decay=0.3
            ),
            load=partial(load, along * PATCH),
            augment=augment,
            hub=IMAGENET,
        )
    )
    return replace(found, with_length=task)


def load(side: int) -> Data:
    """The splits, prepared on first use."""
    name = f"imagenet-1k-{IMAGENET.revision[:8]}-{side}-1"
    folder = lookup(name) or keep(name, partial(_prepare, side))
    return load_splits(folder, partial(PatchedImages, patch=PATCH))


def _prepare(side: int, folder: Path) -> None:
    save_images(_examples(), ("train", "validation", "test"), folder, side=side, mode="RGB")


def _examples() -> Iterator[tuple[str, bytes, int]]:
    """The split, the file and the class of each image."""
    for published in IMAGENET.files:
        for row in rows(IMAGENET, published, image="image"):
            file: bytes = row["image"]["bytes"]
            if published == "validation":
                split = "test"
            else:
                # One training image of 256 is scored on the way.
                split = "train" if sha256(file).digest()[0] else "validation"
            yield split, file, row["label"]


def augment(images: Images, rng: np.random.Generator) -> Images:
    """Each image mirrored or not, and shifted by up to an eighth of its side."""
    return shift(flip(images, rng), rng, images.shape[1] // 8)


TASK = task()
