"""Predict the masked tokens of a review: pre-training for tasks of texts. arXiv:1810.04805.

The texts are the training texts of the sentiment tasks, and no others.
"""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.masked import masked_reviews

TASK = masked_reviews(
    Training(steps=1500, batch=32, learning_rate=3e-3, warmup=150, evaluations=5, scored=1000)
)
