"""Name a handwritten digit: all of MNIST in its usual splits, as 16 patches of 7 by 7."""

from collections.abc import Mapping
from pathlib import Path

from qkvbench.data.cache import prepare_once
from qkvbench.data.labelled_images import LabelledImages
from qkvbench.data.mnist import mnist_70k
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.mnist import load_patches, mnist_in_patches
from qkvbench.tasks.kinds.splits import VALIDATION, save_splits


def load() -> Data:
    """50,000 images to train with, 10,000 to test; of 10,000 for validation the first 1,000."""
    return load_patches(prepare_once("mnist-70k-1", mnist_70k, _make))


def _make(digits: Mapping[str, LabelledImages], folder: Path) -> None:
    splits = {
        name: {"pixels": images.pixels, "targets": images.labels[:, None]}
        for name, images in digits.items()
    }
    splits["validation"] = {k: v[:VALIDATION] for k, v in splits["validation"].items()}
    save_splits(folder, splits)


TASK = mnist_in_patches(
    "Name a handwritten digit from its 16 patches (all 70,000 images of MNIST).", load
)
