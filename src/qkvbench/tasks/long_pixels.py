"""Name a handwritten digit from its pixels as a sequence of 784 grey values.

As the Image task of Long Range Arena (arXiv:2011.04006), which has CIFAR-10 in grey.
"""

from dataclasses import replace

from qkvbench.data.mnist import CLASSES, SIDE
from qkvbench.experiment import Training
from qkvbench.model import Init
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.images import Source, image_classification
from qkvbench.tasks.kinds.splits import PatchedImages
from qkvbench.tasks.mnist_5k import TASK as IN_PATCHES


def load() -> Data:
    """The splits of mnist-5k, in patches of one pixel."""
    data = IN_PATCHES.load()
    parts = (data.train, data.validation, data.test)
    pixels = (replace(part, patch=1) for part in parts if isinstance(part, PatchedImages))
    return Data(*pixels, identity=data.identity)


IN_PIXELS = image_classification(
    Source(
        about="Name a handwritten digit from its 784 pixels in a row (5,000 images of MNIST).",
        tier="packaged",
        version=1,
        model="long-pixels",
        side=SIDE,
        channels=1,
        patch=1,
        classes=CLASSES,
        chance=1 / CLASSES,
        training=Training(
            steps=400, batch=8, learning_rate=4e-3, warmup=40, evaluations=4, scored=500
        ),
        load=load,
    )
)
TASK = replace(
    IN_PIXELS,
    benchmark="long",
    # One grey value of 784 says little: with 0.5, which is good for patches, nothing is learned in
    # the first 200 steps.
    model=replace(IN_PIXELS.model, init=Init(embedding_std=2.0, position_std=1.0)),
)
