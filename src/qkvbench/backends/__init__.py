"""The contract of a backend: a folder with the names of `Backend`. Callers never know which one runs.

To add one, add a folder with the same file names as the others. A `MultiDeviceBackend` can also
train one experiment on several devices, with one process for each.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from qkvbench.analysis import Layer
from qkvbench.cost import CacheDtype
from qkvbench.data.batch import Batch, Predictions, Search
from qkvbench.experiment import Experiment, Precision
from qkvbench.model import Model

# Decode: one step over a cache of `context` random roots for each sequence. Prefill: a prompt of
# `context` tokens into an empty cache, the last logits out. Forward: as many, all logits out.
Kind = Literal["decode", "prefill", "forward"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@runtime_checkable
class Stateful(Protocol):
    """What tells all that has changed of it, as plain arrays."""

    def state(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A model that learns from batches.

    Over several devices there is one in each process. All are called alike, with whole batches, of
    which each computes its part; each is told of the whole.
    """

    def warm_up(self, batch: Batch) -> None:
        """Compile what such batches will need, where anything is compiled; learns nothing."""
        ...

    @property
    def compile_s(self) -> float | None:
        """Seconds that compiling has taken so far, in `warm_up` or later; None without any."""
        ...

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """Loss in nats and gradient norm before clipping; updates nothing."""
        ...

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer along the last gradients."""
        ...

    def predict(self, batch: Batch) -> Predictions:
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
        """Write all weights to one file, of numbers only; of several processes the first does."""
        ...

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Take over what agrees in name and shape from a file that `save` wrote; those names.

        ValueError where a layer's weights do not agree.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All that training has changed: weights, optimizer, loss scale, random states.

        Plain arrays of NumPy's own types, under the same names at every step. They may be live:
        read them before training goes on.
        """
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` told of a learner of the same experiment, with the same bits.

        ValueError where names, shapes or types are not this learner's; it is then unchanged.
        """
        ...


@runtime_checkable
class Together(Learner, Protocol):
    """A learner that may be one of several, each in a process and on a device of its own."""

    @property
    def rank(self) -> int:
        """Which of them it is, from 0."""
        ...

    @property
    def count(self) -> int:
        """How many they are."""
        ...

    def agreed(self, *, asked: bool) -> bool:
        """Whether any of them asks for it; all call this together, as what follows."""
        ...

    def told(self, text: str) -> str:
        """What the first of them says, at most a kilobyte."""
        ...

    def save_state(self, folder: Path) -> None:
        """Write the state into safetensors files of this folder: each what it holds of it.

        All return when all is written. OSError in each where one could not write.
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
        rows: CacheDtype | None = None,
    ) -> Workload:
        """Work of this kind, ready to be timed; ValueError or TypeError where it cannot be.

        `rows` is the type of cached rows; None is the precision's own.
        """
        ...

    def prepare(self, threads: int) -> None:
        """Make this process repeatable, with this number of threads; before anything is computed.

        RuntimeError where it has computed with another number, and that cannot be changed.
        """
        ...

    def fork_safe(self) -> bool:
        """Whether a process that has imported it may be forked; else each one starts anew."""
        ...

    def reset_peak_memory(self) -> int | None:
        """Memory held on the accelerator, whose peak counts from here; None where there is none."""
        ...

    def peak_bytes(self) -> int | None:
        """The most memory held on the accelerator since then; None where there is none."""
        ...

    def types(self) -> dict[str, dict[Precision, str]]:
        """What runs in which type in training, by part and precision: a table for a person."""
        ...

    def compile_error(self) -> str | None:
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

    def matmul_seconds(self, precision: Precision, size: int) -> float:
        """Seconds that one product of two square matrices takes, observed."""
        ...


@runtime_checkable
class MultiDeviceBackend(Backend, Protocol):
    """A backend that computes one experiment on several devices, a process for each."""

    def multi_device_error(self, devices: int) -> str | None:
        """Why a run cannot be spread over so many devices of this machine; None where it can."""
        ...

    def launch(self, words: Sequence[str], devices: int, logs: Path) -> str | None:
        """Start this Python with these words, once for each device, and wait until all have ended.

        None where all ended well; else how the first to fail did: a signal's name, or a status.
        """
        ...

    def started(self) -> tuple[int, int]:
        """Which of the processes that were started together this is, from 0, and how many."""
        ...


def names() -> list[str]:
    """All backends, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module_of(name: str) -> str:
    """The module that holds the backend, for a fork server to import once."""
    return f"{__name__}.{name}"


# What a backend needs that the core does not bring: packages of the extra of its name.
EXTRAS: dict[str, tuple[str, ...]] = {"jax": ("jax", "optax")}


def lacking(name: str) -> str | None:
    """Why the backend cannot be used here and what installs it; None where it can.

    Nothing is imported.
    """
    absent = [package for package in EXTRAS.get(name, ()) if find_spec(package) is None]
    if not absent:
        return None
    return f"The backend {name} needs {' and '.join(absent)}; './qkv setup {name}' installs it."


def find(name: str) -> Backend:
    """The backend with this name; ImportError where what it needs is not installed."""
    if reason := lacking(name):
        raise ImportError(reason)
    return cast(Backend, importlib.import_module(module_of(name)))


def multi_device_backend(name: str) -> MultiDeviceBackend:
    """The backend with this name; ValueError where it computes on one device only."""
    backend = find(name)
    if not isinstance(backend, MultiDeviceBackend):
        raise ValueError(f"The backend {name} runs on one device; leave out --devices.")
    return backend
