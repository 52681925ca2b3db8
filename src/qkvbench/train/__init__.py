"""Training: the loop on one page, and one run from an experiment to its record."""

from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import ended, run

__all__ = ["Checkpoints", "ended", "run"]
