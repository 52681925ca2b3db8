"""What a backend is: a folder with these names. Nothing above knows which one runs.

``Learner(experiment)`` trains and predicts on NumPy batches, and shows what its layers make of
one; ``prepare(threads)`` makes a process
repeatable; ``device()`` names what computes; ``level_bytes()`` and ``peak_bytes()`` tell an
accelerator's memory; ``types()`` says what runs in which type, ``cannot_compile()`` whether a
compiler is lacking; ``workload(...)`` is work to be timed; ``threads()``, ``product_s(...)`` and
``attention_kernels(precision)`` tell what really computes. The file names inside are the same in
every backend.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from qkvbench.analysis import Layer
from qkvbench.cost import RowName
from qkvbench.data.batch import Batch, Outcome, Search
from qkvbench.experiment import Experiment, Precision
from qkvbench.model import Model

# Decode: one step over a cache of `context` random roots for each sequence. Prefill: a prompt of
# `context` tokens into an empty cache, the last logits out. Forward: as many, all logits out.
Kind = Literal["decode", "prefill", "forward"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@runtime_checkable
class Learner(Protocol):
    """A model that learns from batches."""

    def warm_up(self, batch: Batch) -> None:
        """Compile what such batches will need, where the experiment asks for it; learns nothing."""
        ...

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """Loss in nats and gradient norm before clipping; updates nothing."""
        ...

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer along the last gradients."""
        ...

    def predict(self, batch: Batch) -> Outcome:
        """Loss and likeliest class at each place."""
        ...

    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """What the model writes for each item, as the search finds it; without begin and end.

        Of the batch only what is given is read: its targets and its inputs are not. TypeError where
        the model has nothing to write from.
        """
        ...

    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """What the head reads of each item: what a batch is to this model; changes nothing."""
        ...

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """What each attention layer makes of a batch, first to last; changes nothing."""
        ...

    def weights(self) -> Mapping[str, Any]:
        """All weights, under the names that all backends share."""
        ...

    def save(self, path: Path) -> None:
        """Write all weights to one file, of numbers only."""
        ...

    def begin_with(self, path: Path) -> tuple[str, ...]:
        """Take over what agrees in name and shape from a file that `save` wrote; those names.

        ValueError where a layer's weights do not agree.
        """
        ...


@runtime_checkable
class Workload(Protocol):
    """Work of one kind with one model, the same at each step, to be timed."""

    @property
    def tokens(self) -> int:
        """How many tokens a step reads."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """The unique storage of the live cache; None where there is none."""
        ...

    def step(self) -> None:
        """Do the work once and wait for the result, which is forgotten."""
        ...

    def move(self) -> None:
        """Lie elsewhere in memory from now on: a time must not hang on one placement."""
        ...

    def kernel(self) -> str:
        """What does attention in a step, as a profiler sees it."""
        ...


@runtime_checkable
class Backend(Protocol):
    """The module that a backend's folder is."""

    def Learner(self, experiment: Experiment) -> Learner:  # noqa: N802 (a class)
        """The network of `experiment` with its initial values, and a fresh optimizer."""
        ...

    def workload(
        self,
        kind: Kind,
        model: Model,
        precision: Precision,
        *,
        context: int,
        batch: int,
        rows: RowName | None = None,
    ) -> Workload:
        """Work of this kind, ready to be timed; ValueError or TypeError where it cannot be.

        `rows` is the type of cached rows; None is the precision's own.
        """
        ...

    def prepare(self, threads: int) -> None:
        """Make this process repeatable, with this number of threads."""
        ...

    def level_bytes(self) -> int | None:
        """Memory held on the accelerator, whose peak counts from here; None where there is none."""
        ...

    def peak_bytes(self) -> int | None:
        """The most memory held on the accelerator since then; None where there is none."""
        ...

    def types(self) -> dict[str, dict[Precision, str]]:
        """What runs in which type in training, by part and precision: a table for a person."""
        ...

    def cannot_compile(self) -> str | None:
        """Why an experiment that is to be compiled cannot be here; None where it can."""
        ...

    def device(self) -> object:
        """What computes; its text is its name."""
        ...

    def threads(self) -> tuple[int, int]:
        """How many threads share one operation, and how many operations run at a time."""
        ...

    def attention_kernels(self, precision: Precision) -> dict[str, str]:
        """What does attention in training and in decoding of a small model, seen by a profiler."""
        ...

    def product_s(self, precision: Precision, size: int) -> float:
        """Seconds that one product of two square matrices takes, observed."""
        ...


def names() -> list[str]:
    """All backends, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module_of(name: str) -> str:
    """The module that holds the backend, for a fork server to import once."""
    return f"{__name__}.{name}"


def find(name: str) -> Backend:
    """The backend with this name."""
    return cast(Backend, importlib.import_module(module_of(name)))
