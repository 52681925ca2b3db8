"""Name a handwritten digit: 5,000 images of MNIST, 500 of each digit, as 16 patches of 7 by 7."""

from pathlib import Path

from qkvbench.data.cache import prepare_once
from qkvbench.data.labelled_images import LabelledImages
from qkvbench.data.mnist import mnist_5k
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.images import prepare
from qkvbench.tasks.kinds.mnist import load_patches, mnist_in_patches


def load() -> Data:
    """3,500 images to train with, 500 to validate, 1,000 to test; no two are the same."""

    def make(digits: LabelledImages, folder: Path) -> None:
        prepare(digits.pixels, digits.labels.tolist(), folder)

    return load_patches(prepare_once("mnist-5k-1", mnist_5k, make))


TASK = mnist_in_patches(
    "Name a handwritten digit from its 16 patches (5,000 images of MNIST).", load
)
