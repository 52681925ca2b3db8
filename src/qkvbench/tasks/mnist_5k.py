"""Name a handwritten digit: 5,000 images of MNIST, 500 of each digit, as 16 patches of 7 by 7."""

from functools import partial

from qkvbench.data.cache import keep, lookup
from qkvbench.data.labelled_images import SIDE
from qkvbench.data.mnist import CLASSES, mnist_5k
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.augment import shift
from qkvbench.tasks.kinds.images import Source, image_classification, prepare
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits

PATCH = 7
SHIFT = 1
FOLDER = "mnist-5k-1"


def load() -> Data:
    """3,500 images to train with, 500 to validate, 1,000 to test; no two are the same."""
    folder = lookup(FOLDER)
    if folder is None:
        digits = mnist_5k()
        labels = digits.labels.tolist()
        folder = keep(FOLDER, lambda making: prepare(digits.pixels, labels, making))
    return load_splits(folder, partial(PatchedImages, patch=PATCH))


TASK = image_classification(
    Source(
        about="Name a handwritten digit from its 16 patches (5,000 images of MNIST).",
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
