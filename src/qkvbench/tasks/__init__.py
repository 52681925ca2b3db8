"""Tasks: sources of NumPy batches, each with a score. They know no backend.

Each file of this folder is one task: its name is the file's, its value `TASK`. To add one, add a
file. A path to a person's own data is a task, too (`own`). Options behind a name change how the
task is read or what its model is built with (`qkvbench.task_ref`).
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Integer

from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search, Split
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.hub import HubData
from qkvbench.data.tokenizer import Tokenizer
from qkvbench.data.tokenizer import parse_tokenizer as tokenizer_named
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Model, position_named
from qkvbench.task_ref import HeadSizes, TaskRef, parse_task
from qkvbench.variant import Geometry


@dataclass(frozen=True)
class Data:
    """Three disjoint splits, and the hash of their content."""

    train: Split
    validation: Split
    test: Split
    identity: str


@dataclass(frozen=True)
class Metric:
    """The score by which arms are compared. `chance` is that of a random predictor.

    If ``solved`` is given, runs are counted by whether they reach it.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    chance: float
    solved: float | None = None


@dataclass(frozen=True)
class Scored:
    """Scores of generated texts, each with a signature of what exactly was computed."""

    metrics: dict[str, float]
    signatures: dict[str, str]


@dataclass(frozen=True)
class GenerationEval:
    """The evaluation of generated texts, one for each item of the test split.

    ``decode`` turns tokens into a text on one line; ``sources`` are the inputs as texts and
    ``references`` what a person wrote, in the order of the items.
    """

    search: Search
    decode: Callable[[Sequence[Integer[np.ndarray, " _tokens"]]], list[str]]
    sources: Callable[[], list[str]]
    references: Callable[[], list[str]]
    score: Callable[[Sequence[str], Sequence[str]], Scored]


@dataclass(frozen=True)
class Task:
    """A benchmark task. `version` goes up with every change that moves a score.

    ``tokens`` is the length of an input, ``second_tokens`` that of a second one; ``model`` and
    ``training`` are the defaults of a study.
    ``with_tokenizer`` gives the task that reads the same text with another tokenizer; None if
    there is no text. ``with_length`` gives the task with inputs of another length; None if it has
    one only. ``augment`` changes a training batch each time it is read: images are shifted, tokens
    masked. ``feature_extractor`` is the experiment whose trained network reads the inputs first,
    the same for all arms. ``generation`` evaluates texts after training; the metric may be one of
    its scores. ``hub`` is the data set of the Hugging Face Hub that a task of this tier reads.
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
    with_tokenizer: Callable[[Tokenizer], "Task"] | None = None
    with_length: Callable[[int], "Task"] | None = None
    augment: Callable[[Batch, np.random.Generator], Batch] | None = None
    second_tokens: int = 0
    feature_extractor: Experiment | None = None
    generation: GenerationEval | None = None
    hub: HubData | None = None


def names() -> list[str]:
    """All tasks, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
    )


def find(task: TaskRef | str) -> Task:
    """The task that a name or a path means, with its options (`qkvbench.task_ref`).

    KeyError if there is no such task, DataRefusedError if it has no such option, and
    DataUnavailableError if the cache for a person's own data cannot be written.
    """
    ref = parse_task(task) if isinstance(task, str) else task
    if not ref.is_path:
        return _built_in(ref)
    # What lies at a path may change.
    read = _READ.get()
    if read is None:
        return _with_options(_own(ref), ref)
    if ref.name not in read:
        read[ref.name] = _own(ref)
    return _with_options(read[ref.name], ref)


# The tasks of own data that were read, by their paths; None outside of `read_once`.
_READ: ContextVar[dict[str, Task] | None] = ContextVar("read", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """A person's own data are read at their first use inside and not again, if they change."""
    before = _READ.get()
    token = _READ.set({} if before is None else before)
    try:
        yield
    finally:
        _READ.reset(token)


# A study asks for each of its tasks many times.
@lru_cache(maxsize=256)
def _built_in(ref: TaskRef) -> Task:
    """The task of a file of this folder, with its options."""
    name, at, rest = ref.name.partition("@")
    if name not in names():
        raise KeyError(str(ref))
    task: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    if at:
        raise _no_option(task, name, rest, ref)
    if ref.length is not None:
        if task.with_length is None:
            raise DataRefusedError(f"'{name}' has one length; leave out '@{ref.length}'.")
        task = task.with_length(ref.length)
    return _with_options(task, ref)


def _own(ref: TaskRef) -> Task:
    # Imported here, since it is made of tasks.
    from qkvbench.tasks import own

    return own.task(ref.name)


def _no_option(task: Task, name: str, rest: str, ref: TaskRef) -> DataRefusedError:
    """The refusal of what follows an `@` and is no option, or one in the wrong place."""
    misplaced = parse_task(f"{name}@{rest}")
    if misplaced.heads and ref.position:
        right = replace(ref, name=name, heads=misplaced.heads)
        return DataRefusedError(f"Heads stand last: write {right}, not {ref}.")
    if task.with_length is None:
        return DataRefusedError(
            f"'{name}' has one length; leave out '@{rest}', or write positions or heads, as in "
            f"{name}@rotary or {name}@1x64."
        )
    return DataRefusedError(
        f"'{rest}' is no length; write a number of tokens, as in {name}@{task.tokens}."
    )


def _with_options(task: Task, ref: TaskRef) -> Task:
    """The task read with the tokenizer and by a model with the positions and heads of `ref`."""
    if ref.tokenizer is not None:
        tokenizer = tokenizer_named(ref.tokenizer)
        if task.with_tokenizer is None:
            raise DataRefusedError(
                f"'{ref.name}' is no text, so no tokenizer reads it; leave out '#{tokenizer.name}'."
            )
        task = task.with_tokenizer(tokenizer)
    if ref.position is not None:
        task = _with_position(task, ref.position)
    return task if ref.heads is None else _with_heads(task, ref.heads, ref)


def accuracy(outcome: Predictions) -> dict[str, float]:
    """The share of targets whose likeliest class is right, and the mean loss in nats."""
    scored = outcome.targets != IGNORE_INDEX
    right = outcome.predicted[scored] == outcome.targets[scored]
    return {"accuracy": float(right.mean()), "loss": float(outcome.loss[scored].mean())}


def balanced_accuracy(outcome: Predictions) -> dict[str, float]:
    """The mean recall of the classes, and the scores of `accuracy`.

    Always predicting the majority class scores 1/classes, the same as guessing.
    """
    scored = outcome.targets != IGNORE_INDEX
    targets = outcome.targets[scored]
    right = outcome.predicted[scored] == targets
    counts = np.bincount(targets)
    found = np.bincount(targets, right)[counts > 0] / counts[counts > 0]
    return {"balanced_accuracy": float(found.mean()), **accuracy(outcome)}


def top(outcome: Predictions, count: int) -> float:
    """The share of targets whose class is among the `count` likeliest."""
    return float((outcome.ranks[outcome.targets != IGNORE_INDEX] < count).mean())


def _with_position(task: Task, scheme: str) -> Task:
    """The same task, its model with this position scheme; DataRefusedError if there is none."""
    try:
        own, second = (
            position_named(scheme, max(1, length)) for length in (task.tokens, task.second_tokens)
        )
        return replace(task, model=task.model.with_positions(own, second))
    except ValueError as error:
        raise DataRefusedError(str(error)) from None


def _with_heads(task: Task, sizes: HeadSizes, ref: TaskRef) -> Task:
    """The same task, its model as wide as before with so many heads of that size.

    DataRefusedError if it cannot be built so.
    """
    width = task.model.geometry.d_model
    try:
        geometry = Geometry(width, sizes.heads, sizes.heads, sizes.head_dim)
        return replace(task, model=replace(task.model, geometry=geometry))
    except ValueError as error:
        example = replace(ref, heads=HeadSizes(1, width))
        raise DataRefusedError(
            f"{error}\nWrite the number of heads and the coordinates of each, as in {example}."
        ) from None
