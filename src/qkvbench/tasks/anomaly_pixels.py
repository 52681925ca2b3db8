"""Find the image of another digit among nine of one, from their pixels (MNIST)."""

from functools import partial

from qkvbench.data.cache import prepare_once
from qkvbench.data.labelled_images import SIDE
from qkvbench.data.mnist import mnist_70k
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.odd_one_out import Sets, odd_one, prepare
from qkvbench.tasks.kinds.splits import load_splits

FOLDER = "anomaly-digits-1"
PATCH = 7


def load() -> Data:
    """Sets from MNIST's usual splits: no image is in sets of two splits."""
    return load_splits(prepare_once(FOLDER, mnist_70k, partial(prepare, FOLDER, PATCH)), Sets)


TASK = odd_one(
    about="Find the odd one of ten handwritten digits, from pixels (MNIST).",
    version=1,
    model="anomaly-pixels",
    features=SIDE**2,
    training=Training(steps=1500, batch=32, learning_rate=2e-3, warmup=100),
    load=load,
)
