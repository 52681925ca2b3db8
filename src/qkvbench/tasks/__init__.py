"""What a task is. Each file of this folder is one task: its name is the file's, its value `TASK`.

A task is a source of NumPy batches and a score; it knows no backend. To add one, add a file. A
path is a task, too, made from what lies there (`_own`), and a text may be read with another
tokenizer: `lm-reviews#bpe-1024`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qkvbench.data.batch import UNSCORED, Outcome, Split
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.tokenizer import Tokenizer, named
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
    ``retokenized`` gives the task that reads the same text with another tokenizer; None where
    there is no text.
    """

    about: str
    benchmark: str
    tier: Literal["built-in", "packaged", "hub", "own"]
    version: int
    metric: Metric
    tokens: int
    model: Model
    training: Training
    load: Callable[[], Data]
    score: Callable[[Outcome], dict[str, float]]
    retokenized: Callable[[Tokenizer], "Task"] | None = None


def names() -> list[str]:
    """All tasks, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    )


def find(name: str) -> Task:
    """The task that a name, a path, or one of them with `#` and a tokenizer means.

    KeyError where there is none, DataRefusedError where it cannot be read so, and
    DataUnavailableError where the cache for own data cannot be written.
    """
    base, tokenizer = parted(name)
    own = importlib.import_module(f"{__name__}._own")
    if own.is_path(base):
        task: Task = own.task(base)
    elif base in names():
        task = importlib.import_module(f"{__name__}.{base.replace('-', '_')}").TASK
    else:
        raise KeyError(name)
    if tokenizer is None:
        return task
    if task.retokenized is None:
        raise DataRefusedError(
            f"'{base}' is no text, so no tokenizer reads it; leave out '#{tokenizer.name}'."
        )
    return task.retokenized(tokenizer)


def parted(name: str) -> tuple[str, Tokenizer | None]:
    """The name before the last `#`, and the tokenizer after it; None where none is named.

    What stands behind a `#` and has a dot or a separator of paths belongs to the path.
    """
    base, mark, tokenizer = name.rpartition("#")
    if not mark or not set("./\\").isdisjoint(tokenizer):
        return name, None
    return base, named(tokenizer)


def accuracy(outcome: Outcome) -> dict[str, float]:
    """The share of scored places whose likeliest class is right, and the mean loss in nats."""
    scored = outcome.targets != UNSCORED
    right = outcome.predicted[scored] == outcome.targets[scored]
    return {"accuracy": float(right.mean()), "loss": float(outcome.loss[scored].mean())}
