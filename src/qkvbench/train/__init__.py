"""Training: the loop on one page, and one run from an experiment to its record."""

from qkvbench.train.run import ended, run

__all__ = ["ended", "run"]
