"""Which tokens of a review are hidden? Pre-training for tasks of texts. arXiv:1810.04805.

The texts are those that the tasks of sentiment train with, and no others.
"""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.masked import masked_reviews

TASK = masked_reviews(
    Training(steps=1500, batch=32, learning_rate=3e-3, warmup=150, evaluations=5, scored=1000)
)
