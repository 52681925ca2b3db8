"""Animals: pictures of ten kinds as white shapes on black (Animal MNIST, from a wheel)."""

import gzip

from qkvbench.data.array_pickle import arrays
from qkvbench.data.labelled_images import LabelledImages
from qkvbench.data.wheel import Wheel, open_wheel

# In the order of their labels. Zebras are the easiest: only they have grey stripes.
KINDS = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)

ANIMAL_MNIST = Wheel(
    name="animal-mnist",
    version="0.4",
    file="animal_mnist-0.4-py3-none-any.whl",
    sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
)
_FILES = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"


def animals() -> LabelledImages:
    """The 9,716 distinct pictures of 10,000; DataUnavailableError without the wheel."""
    with open_wheel(ANIMAL_MNIST) as archive:
        pixels, labels = (
            arrays(gzip.decompress(archive.read(_FILES.format(part)))) for part in ("data", "label")
        )
    return LabelledImages(pixels[..., None], labels).distinct()
