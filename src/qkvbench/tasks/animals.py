"""Name an animal from a picture of 28 by 28 pixels, white on black, as 16 patches of 7 by 7.

Nine of the ten kinds are outlines. Zebras have grey stripes, so texture alone identifies them.
"""

from functools import partial
from pathlib import Path

import numpy as np

from qkvbench.data.animals import KINDS, animals
from qkvbench.data.cache import prepare_once
from qkvbench.data.labelled_images import SIDE, LabelledImages
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.augment import Images, flip, shift
from qkvbench.tasks.kinds.images import Source, image_classification, prepare
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits

PATCH = 7
SHIFT = 1


def load() -> Data:
    """A fifth of each kind's distinct pictures to test, a tenth to validate, the rest to train."""

    def make(found: LabelledImages, folder: Path) -> None:
        prepare(found.pixels, found.labels.tolist(), folder)

    folder = prepare_once("animals-1", animals, make)
    return load_splits(folder, partial(PatchedImages, patch=PATCH))


def _augment(images: Images, rng: np.random.Generator) -> Images:
    return shift(flip(images, rng), rng, SHIFT)


TASK = image_classification(
    Source(
        about="Name an animal from 16 patches of its outline (Animal MNIST).",
        tier="packaged",
        version=1,
        model="animals",
        side=SIDE,
        channels=1,
        patch=PATCH,
        classes=len(KINDS),
        chance=1 / len(KINDS),
        training=Training(steps=3000, batch=32, learning_rate=2e-3, warmup=100),
        load=load,
        pooling="class token",
        augment=_augment,
    )
)
