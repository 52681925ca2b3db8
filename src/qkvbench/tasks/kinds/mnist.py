"""MNIST as 16 patches of 7 by 7: the parts that its tasks share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qkvbench.data.labelled_images import SIDE
from qkvbench.data.mnist import CLASSES
from qkvbench.experiment import Training
from qkvbench.tasks import Data, Task
from qkvbench.tasks.kinds.augment import shift
from qkvbench.tasks.kinds.images import Source, image_classification
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits

PATCH = 7
# Pixels by which a training image is shifted at most.
SHIFT = 1


def mnist_in_patches(about: str, load: Callable[[], Data]) -> Task:
    """The task of naming a handwritten digit."""
    return image_classification(
        Source(
            about=about,
            tier="packaged",
            version=2,
            model="mnist",
            side=SIDE,
            channels=1,
            patch=PATCH,
            classes=CLASSES,
            chance=1 / CLASSES,
            training=Training(steps=1500, batch=32, learning_rate=2e-3, warmup=100),
            load=load,
            augment=partial(shift, pixels=SHIFT),
        )
    )


def load_patches(folder: Path) -> Data:
    """The splits of a prepared folder, each image cut into patches."""
    return load_splits(folder, partial(PatchedImages, patch=PATCH))
