"""Find the image of another digit among nine of one, as a network sees them that knows none.

The sets are those of `anomaly-pixels`. The network has learned to name animals, by canonical
attention, and learns no more: every arm reads the same features of it, and none of the digits was
among its classes.
"""

from qkvbench.experiment import Experiment, Training
from qkvbench.task_ref import TaskRef
from qkvbench.tasks import animals, anomaly_pixels
from qkvbench.tasks.kinds.odd_one_out import odd_one

# No arm of a study has this seed, as long as there are fewer than eleven.
SEED = 10

EXTRACTOR = Experiment(
    model=animals.TASK.model,
    task=TaskRef("animals"),
    task_version=animals.TASK.version,
    training=animals.TASK.training,
    seed=SEED,
)

TASK = odd_one(
    about="Name the place of the odd one of ten digits, from features of animals' network.",
    version=1,
    model="anomaly-features",
    features=EXTRACTOR.model.geometry.d_model,
    training=Training(steps=1500, batch=32, learning_rate=2e-3, warmup=100),
    load=anomaly_pixels.load,
    feature_extractor=EXTRACTOR,
)
