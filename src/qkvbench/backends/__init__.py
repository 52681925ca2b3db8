"""The contract of a backend: a folder whose module has the names of `Backend`.

To add one, add a folder with the same file names as the others. A `MultiDeviceBackend` can also
train one experiment on several devices, with one process for each.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from qkvbench.model.quantization import Quantization

# Decode: one step over a cache of `context` random roots for each sequence. Prefill: a prompt of
# `context` tokens into an empty cache, the last logits out. Forward: as many, all logits out.
Kind = Literal["decode", "prefill", "forward"]
KINDS: tuple[Kind, ...] = get_args(Kind)


# The folder of this package that is no backend: code that they share.
SHARED = "common"
# The file to which a process that trains alone writes its state.
STATE_FILE = "state.safetensors"


class World(Protocol):
    """The processes that train one model, each on a device of its own."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of processes."""
        ...

    def any_rank(self, *, flag: bool) -> bool:
        """True if the flag is set in any process. All processes must call this."""
        ...

    def broadcast(self, text: str) -> str:
        """The text of rank 0, at most a kilobyte. All processes must call this."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """A world of one process: its operations are no-ops."""

    rank: int = 0
    world_size: int = 1

    def any_rank(self, *, flag: bool) -> bool:
        """The flag."""
        return flag

    def broadcast(self, text: str) -> str:
        """The text."""
        return text


class Stateful(Protocol):
    """Something whose whole state is a set of named arrays, held by one or more processes."""

    @property
    def world(self) -> World:
        """The processes that hold the state."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All that training changes: weights, optimizer, loss scale, states of random generators.

        The arrays have NumPy's own types and the same names at every step. They may be live: read
        them before training goes on. Of several processes each returns its shards.
        """
        ...

    def save_state(self, folder: Path) -> None:
        """Write the state to safetensors files in a folder: each process writes its shards.

        All processes return when all have written. OSError in each if one could not write.
        """
        ...


@runtime_checkable
class Learner(Stateful, Protocol):
    """A model that learns from batches.

    If several processes train one model, each has a learner. All make the same calls with whole
    batches; each computes its part, and every result is that of the whole batch.
    """

    def warm_up(self, batch: Batch) -> None:
        """Compile for batches of these shapes, if the backend compiles; learns nothing."""
        ...

    @property
    def compile_s(self) -> float | None:
        """Seconds spent compiling so far, in `warm_up` or later; None if nothing was compiled."""
        ...

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The loss in nats, and the gradient norm before clipping; updates nothing."""
        ...

    def update(self, learning_rate: float) -> None:
        """One optimizer step along the last gradients."""
        ...

    def predict(self, batch: Batch) -> Predictions:
        """The loss and the most likely class at each position."""
        ...

    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """The token sequence that the search finds for each item, without begin and end tokens.

        Only the batch's second input is read. TypeError if the model has no source to read.
        """
        ...

    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """The input of the model's head for each item; changes nothing."""
        ...

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """The attention layers' tensors for a batch, first layer first; changes nothing."""
        ...

    def weights(self) -> Mapping[str, Any]:
        """All weights, under the names that all backends share."""
        ...

    def save(self, path: Path) -> None:
        """Write all weights to one safetensors file; of several processes rank 0 does."""
        ...

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Load the weights that agree in name and shape from a file of `save`; returns their names.

        ValueError if a layer's weights do not agree.
        """
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Set the `state` of a learner of the same experiment; training goes on with the same bits.

        ValueError if names, shapes or types differ from this learner's, which is then unchanged.
        """
        ...


@runtime_checkable
class GatedLearner(Learner, Protocol):
    """A learner that can have gates, which choose the attention of each layer, and a teacher."""

    def gate_measures(self) -> dict[str, list[float]]:
        """By equation, the probability of each layer to get it; empty without gates."""
        ...

    def load_teacher(self, path: Path) -> None:
        """Load the network of the experiment's teacher from a file of `save`."""
        ...


@runtime_checkable
class QuantizedLearner(Learner, Protocol):
    """A learner whose decoder can be scored over a cache in few bits."""

    def predict_quantized(self, batch: Batch, how: Quantization) -> Predictions:
        """As `predict`, with cached rows and matrices in few bits; changes nothing."""
        ...


@runtime_checkable
class Workload(Protocol):
    """Work of one kind with one model, the same in each step, to be timed."""

    @property
    def tokens(self) -> int:
        """The number of tokens that a step reads."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """The unique storage of the live cache; None if there is none."""
        ...

    def step(self) -> None:
        """Do the work once, wait for the result and drop it."""
        ...

    def move(self) -> None:
        """Reallocate all tensors: a time must not depend on one placement in memory."""
        ...

    def kernel(self) -> str:
        """The attention kernel of a step, as a profiler names it."""
        ...


@runtime_checkable
class Backend(Protocol):
    """The module of a backend's folder."""

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
        """Work of this kind, ready to be timed; ValueError or TypeError if the model cannot do it.

        `rows` is the data type of cached rows; None is the precision's own.
        """
        ...

    def prepare(self, threads: int) -> None:
        """Make this process deterministic and set its number of threads, before any computation.

        RuntimeError if it has computed with another number that cannot be changed.
        """
        ...

    def fork_safe(self) -> bool:
        """Whether a process that has imported the backend may be forked."""
        ...

    def imported_late(self) -> tuple[str, ...]:
        """Modules that training imports beside the backend; a fork server imports them once."""
        ...

    def reset_peak_memory(self) -> int | None:
        """Bytes held on the accelerator, where the peak is reset; None without an accelerator."""
        ...

    def peak_bytes(self) -> int | None:
        """Peak bytes on the accelerator since `reset_peak_memory`; None without an accelerator."""
        ...

    def types(self) -> dict[str, dict[Precision, str]]:
        """The data type of each part of training by precision: a table for a person."""
        ...

    def compile_error(self) -> str | None:
        """Why `compiled` experiments cannot run here; None if they can."""
        ...

    def device(self) -> object:
        """The device that computes; its text is its name."""
        ...

    def threads(self) -> tuple[int, int]:
        """How many threads share one operation, and how many operations run at a time."""
        ...

    def attention_kernels(self, precision: Precision) -> dict[str, str]:
        """The attention kernels of training and decoding in a small model, found by a profiler."""
        ...

    def matmul_seconds(self, precision: Precision, size: int) -> float:
        """Observed seconds of one product of two square matrices."""
        ...


@runtime_checkable
class MultiDeviceBackend(Backend, Protocol):
    """A backend that trains one experiment on several devices, with one process for each."""

    def multi_device_error(self, devices: int) -> str | None:
        """Why this machine cannot train on so many devices; None if it can."""
        ...

    def launch(self, words: Sequence[str], devices: int, logs: Path) -> str | None:
        """Start this Python with these arguments, once per device, and wait until all have ended.

        None if all succeeded; else how the first failure ended: a signal's name or an exit status.
        """
        ...

    def rank_and_world_size(self) -> tuple[int, int]:
        """The rank of this process and the number of processes that were launched together."""
        ...


def names() -> list[str]:
    """All backends, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != SHARED)


def module_of(name: str) -> str:
    """The name of the backend's module, for a fork server to import once."""
    return f"{__name__}.{name}"


# Packages that a backend needs and the core does not install: those of the extra of its name.
EXTRAS: dict[str, tuple[str, ...]] = {"jax": ("jax", "optax")}


def missing_requirement(name: str) -> str | None:
    """The packages that the backend lacks and what installs them; None if it has all.

    Imports nothing.
    """
    absent = [package for package in EXTRAS.get(name, ()) if find_spec(package) is None]
    if not absent:
        return None
    return f"The backend {name} needs {' and '.join(absent)}; './qkv setup {name}' installs it."


def find(name: str) -> Backend:
    """The backend with this name; ImportError if a package that it needs is not installed."""
    if reason := missing_requirement(name):
        raise ImportError(reason)
    return cast(Backend, importlib.import_module(module_of(name)))


def multi_device_backend(name: str) -> MultiDeviceBackend:
    """The backend with this name; ValueError if it trains on one device only."""
    backend = find(name)
    if not isinstance(backend, MultiDeviceBackend):
        raise ValueError(f"The backend {name} runs on one device; leave out --devices.")
    return backend
