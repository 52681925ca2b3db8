"""What a task is. Each file of this folder is one task: its name is the file's, its value `TASK`.

A task is a source of NumPy batches and a score; it knows no backend. To add one, add a file.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qkvbench.data.batch import UNSCORED, Outcome, Split
from qkvbench.experiment import Training
from qkvbench.model import Model


@dataclass(frozen=True)
class Data:
    """Three disjoint splits, and the hash of what is in them."""

    train: Split
    validation: Split
    test: Split
    identity: str


@dataclass(frozen=True)
class Metric:
    """The figure a task is judged by. `chance` is what a random predictor scores.

    Where ``solved`` is given, a run either solves the task or does not (yet), and runs are
    counted by whether they reach it.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    chance: float
    solved: float | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark task. `version` goes up with every change that moves a score.

    ``tokens`` is the length of an input; ``model`` and ``training`` are what a study starts from.
    """

    about: str
    benchmark: str
    tier: Literal["built-in", "packaged", "hub"]
    version: int
    metric: Metric
    tokens: int
    model: Model
    training: Training
    load: Callable[[], Data]
    score: Callable[[Outcome], dict[str, float]]


def names() -> list[str]:
    """All tasks, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    )


def find(name: str) -> Task:
    """The task with this name; KeyError where there is none."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK


def accuracy(outcome: Outcome) -> dict[str, float]:
    """The share of scored places whose likeliest class is right, and the mean loss in nats."""
    scored = outcome.targets != UNSCORED
    right = outcome.predicted[scored] == outcome.targets[scored]
    return {"accuracy": float(right.mean()), "loss": float(outcome.loss[scored].mean())}
