"""Training: the loop on one page, and one run from an experiment to its record."""

from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.dependencies import ensure_trained, run_with_dependencies
from qkvbench.train.run import run

__all__ = ["Checkpoints", "ensure_trained", "run", "run_with_dependencies"]
