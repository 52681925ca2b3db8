"""Find the image of another digit among nine of one, from the features of a frozen network.

The sets are those of `anomaly-pixels`. The network, with canonical attention, was trained to
classify animals: every arm reads the same features, and digits are not among its classes.
"""

from qkvbench.experiment import Experiment, Training
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import animals, anomaly_pixels
from qkvbench.tasks.kinds.odd_one_out import odd_one

# Studies of up to ten seeds do not use it.
SEED = 10

EXTRACTOR = Experiment(
    model=animals.TASK.model,
    task=TaskRef("animals"),
    task_version=animals.TASK.version,
    training=animals.TASK.training,
    seed=SEED,
)

TASK = odd_one(
    about="Find the odd one of ten digits, from the features of a network trained on animals.",
    version=1,
    model="anomaly-features",
    features=EXTRACTOR.model.geometry.d_model,
    training=Training(steps=1500, batch=32, learning_rate=2e-3, warmup=100),
    load=anomaly_pixels.load,
    feature_extractor=EXTRACTOR,
)
