"""What a task is. Each file of this folder is one task: its name is the file's, its value `TASK`.

A task is a source of NumPy batches and a score; it knows no backend. To add one, add a file. A
path is a task, too, made from what lies there (`own`). A mark behind a name is another view of the
same task: a text may be read with another tokenizer, `lm-reviews#bpe-1024`, and to another length,
`long-plays@8192`; its model may know positions otherwise, `recall@rotary`, and have other heads:
`recall@1x64` has one of 64.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Integer

from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search, Split
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.tokenizer import Tokenizer, named
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Model, position_named
from qkvbench.model.positions import POSITIONS
from qkvbench.variant import Geometry

# A task's name, then heads x coordinates of each.
_WITH_HEADS = re.compile(r"(.+)@([0-9]{1,4})x([0-9]{1,4})", re.DOTALL)
# A task's name, then a position scheme, of which some take a share of each head.
_WITH_POSITION = re.compile(rf"(.+)@((?:{'|'.join(POSITIONS)})(?:/[0-9.]+)?)", re.DOTALL)


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
class Scored:
    """What written texts score, and for each score a signature: what exactly was computed."""

    metrics: dict[str, float]
    signatures: dict[str, str]


@dataclass(frozen=True)
class GenerationEval:
    """What a model writes once it has learned: a text for each item of the test split.

    ``read`` gives the text that tokens stand for, on one line; ``given`` what was to be rewritten
    in each item, and ``references`` what a person wrote, in the order of the items.
    """

    search: Search
    read: Callable[[Sequence[Integer[np.ndarray, " _tokens"]]], list[str]]
    given: Callable[[], list[str]]
    references: Callable[[], list[str]]
    score: Callable[[Sequence[str], Sequence[str]], Scored]


@dataclass(frozen=True)
class Task:
    """A benchmark task. `version` goes up with every change that moves a score.

    ``tokens`` is the length of an input, ``second_tokens`` that of a second one; ``model`` and
    ``training`` are what a study starts from.
    ``retokenized`` gives the task that reads the same text with another tokenizer; None where
    there is no text. ``lengthened`` gives the task with inputs of another length; None where the
    task has but one. ``redrawn`` gives a training batch with what is drawn anew each time it is
    seen: an image shifted, words masked. ``seen_through`` is the experiment through whose network,
    as it was at its end, the inputs are seen by all arms alike; None where they are as they are.
    ``writing`` is what is written at the end and scored as text: the metric may be one of those
    scores.
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
    score: Callable[[Predictions], dict[str, float]]
    retokenized: Callable[[Tokenizer], "Task"] | None = None
    lengthened: Callable[[int], "Task"] | None = None
    augment: Callable[[Batch, np.random.Generator], Batch] | None = None
    second_tokens: int = 0
    feature_extractor: Experiment | None = None
    generation: GenerationEval | None = None


def names() -> list[str]:
    """All tasks, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
    )


def find(name: str) -> Task:
    """The task that a name or a path means, with what its marks say.

    `@` and a number is a length, `#` a tokenizer, `@` and a name as in `rotary` are positions, `@`
    and sizes as in `1x64` are heads, in this order. KeyError where there is no such task,
    DataRefusedError where it cannot be read so, and DataUnavailableError where the cache for own
    data cannot be written.
    """
    if heads := heads_in(name):
        return _with_heads(find(heads.name), heads)
    if marked := position_in(name):
        return _with_position(find(marked.name), marked)
    base, tokenizer = parted(name)
    own = importlib.import_module(f"{__name__}.own")
    if own.is_path(base):
        task: Task = own.task(base)
    else:
        task = _named(name, base)
    if tokenizer is None:
        return task
    if task.retokenized is None:
        raise DataRefusedError(
            f"'{base}' is no text, so no tokenizer reads it; leave out '#{tokenizer.name}'."
        )
    return task.retokenized(tokenizer)


def _named(asked: str, base: str) -> Task:
    """The task of a file of this folder, at the length behind an `@` where there is one."""
    name, mark, length = base.partition("@")
    if name not in names():
        raise KeyError(asked)
    task: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    if not mark:
        return task
    if task.lengthened is None:
        raise DataRefusedError(f"'{name}' has one length; leave out '@{length}'.")
    if not (length.isascii() and length.isdigit() and len(length) <= 9):
        raise DataRefusedError(
            f"'{length}' is no length; write a number of tokens, as in {name}@{task.tokens}."
        )
    return task.lengthened(int(length))


def parted(name: str) -> tuple[str, Tokenizer | None]:
    """The name before the last `#`, and the tokenizer after it; None where none is named.

    What stands behind a `#` and has a dot or a separator of paths belongs to the path.
    """
    base, mark, tokenizer = name.rpartition("#")
    if not mark or not set("./\\").isdisjoint(tokenizer):
        return name, None
    return base, named(tokenizer)


@dataclass(frozen=True)
class Heads:
    """A task's name without its mark, and the heads of the mark."""

    name: str
    heads: int
    head_dim: int


def heads_in(name: str) -> Heads | None:
    """What the mark at the end of ``recall@1x64`` says; None where there is none."""
    found = _WITH_HEADS.fullmatch(name)
    return found and Heads(found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True)
class Positions:
    """A task's name without its mark, and the position scheme of the mark."""

    name: str
    scheme: str


def position_in(name: str) -> Positions | None:
    """What the mark at the end of ``recall@rotary`` says; None where there is none."""
    found = _WITH_POSITION.fullmatch(name)
    return found and Positions(found[1], found[2])


def plain(name: str) -> str:
    """The task's name without what its marks say of its model: of ``recall@rotary``, ``recall``."""
    marked = heads_in(name) or position_in(name)
    return plain(marked.name) if marked else name


def accuracy(outcome: Predictions) -> dict[str, float]:
    """The share of scored places whose likeliest class is right, and the mean loss in nats."""
    scored = outcome.targets != IGNORE_INDEX
    right = outcome.predicted[scored] == outcome.targets[scored]
    return {"accuracy": float(right.mean()), "loss": float(outcome.loss[scored].mean())}


def balanced_accuracy(outcome: Predictions) -> dict[str, float]:
    """The mean over the classes of how many of each are found, beside what `accuracy` gives.

    Who always names the most frequent class scores here as who guesses does: 1/classes.
    """
    scored = outcome.targets != IGNORE_INDEX
    targets = outcome.targets[scored]
    right = outcome.predicted[scored] == targets
    counts = np.bincount(targets)
    found = np.bincount(targets, right)[counts > 0] / counts[counts > 0]
    return {"balanced_accuracy": float(found.mean()), **accuracy(outcome)}


def top(outcome: Predictions, count: int) -> float:
    """The share of scored places whose right class is among the `count` likeliest."""
    return float((outcome.ranks[outcome.targets != IGNORE_INDEX] < count).mean())


def _with_position(task: Task, wanted: Positions) -> Task:
    """The same task, whose model knows positions by this scheme.

    DataRefusedError where the scheme takes no such share, or heads stand before it.
    """
    if marked := heads_in(wanted.name):
        heads = f"{marked.heads}x{marked.head_dim}"
        raise DataRefusedError(
            f"Heads stand last: write {marked.name}@{wanted.scheme}@{heads}, not {wanted.name}."
        )
    try:
        own, second = (
            position_named(wanted.scheme, max(1, length))
            for length in (task.tokens, task.second_tokens)
        )
        return replace(task, model=task.model.with_positions(own, second))
    except ValueError as error:
        raise DataRefusedError(str(error)) from None


def _with_heads(task: Task, wanted: Heads) -> Task:
    """The same task, whose model has so many heads of that size and is else as wide as it was.

    DataRefusedError where it cannot be built so.
    """
    width = task.model.geometry.d_model
    try:
        geometry = Geometry(width, wanted.heads, wanted.heads, wanted.head_dim)
        return replace(task, model=replace(task.model, geometry=geometry))
    except ValueError as error:
        raise DataRefusedError(
            f"{error}\nWrite the number of heads and the coordinates of each, as in "
            f"{wanted.name}@1x{width}."
        ) from None
