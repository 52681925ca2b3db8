"""Name a handwritten digit: all of MNIST in its usual splits, as 16 patches of 7 by 7."""

from functools import partial

from qkvbench.data.cache import keep, lookup
from qkvbench.data.labelled_images import SIDE
from qkvbench.data.mnist import CLASSES, mnist_70k
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.augment import shift
from qkvbench.tasks.kinds.images import Source, image_classification
from qkvbench.tasks.kinds.splits import VALIDATION, PatchedImages, load_splits, save_splits

PATCH = 7
SHIFT = 1
FOLDER = "mnist-70k-1"


def load() -> Data:
    """50,000 images to train with and 10,000 to test; of 10,000 for validation the first 1,000."""
    folder = lookup(FOLDER)
    if folder is None:
        splits = {
            name: {"pixels": digits.pixels, "targets": digits.labels[:, None]}
            for name, digits in mnist_70k().items()
        }
        splits["validation"] = {k: v[:VALIDATION] for k, v in splits["validation"].items()}
        folder = keep(FOLDER, lambda making: save_splits(making, splits))
    return load_splits(folder, partial(PatchedImages, patch=PATCH))


TASK = image_classification(
    Source(
        about="Name a handwritten digit from its 16 patches (all 70,000 images of MNIST).",
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
