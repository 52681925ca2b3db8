"""Training: the loop on one page, and one run from an experiment to its record."""

from qkvbench.train.run import run

__all__ = ["run"]
