"""Name a handwritten digit: 5,000 images of MNIST, 500 of each digit, as 16 patches of 7 by 7."""

from qkvbench.data.cache import keep, kept
from qkvbench.data.mnist import CLASSES, SIDE, mnist_5k
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks._images import Source, image_classification, prepare
from qkvbench.tasks._splits import saved

PATCH = 7
PREPARED = "mnist-5k-1"


def load() -> Data:
    """3,500 images to train with, 500 to validate, 1,000 to test; no two are the same."""
    folder = kept(PREPARED)
    if folder is None:
        digits = mnist_5k()
        folder = keep(PREPARED, lambda making: prepare(digits.pixels, list(digits.labels), making))
    return saved(folder, PATCH)


TASK = image_classification(
    Source(
        about="Name a handwritten digit from its 16 patches (5,000 images of MNIST).",
        tier="packaged",
        version=1,
        model="mnist",
        side=SIDE,
        channels=1,
        patch=PATCH,
        classes=CLASSES,
        chance=1 / CLASSES,
        training=Training(steps=400, batch=32, learning_rate=2e-3, warmup=40),
        load=load,
    )
)
