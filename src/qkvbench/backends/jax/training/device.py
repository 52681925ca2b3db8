"""What computes: devices, their memory, and the threads of XLA, which are chosen once."""

import os

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from qkvbench.data.cache import cache_folder

# What takes longer to compile is kept for the next process.
WORTH_KEEPING_S = 0.2

# How many threads this process computes with; None before that is chosen.
_chosen: int | None = None
# Deterministic operations, and no threads of a library's own where there is to be one thread.
_ALWAYS = ("--xla_gpu_deterministic_ops=true",)
_ALONE = ("--xla_cpu_multi_thread_eigen=false",)


def prepare(threads: int) -> None:
    """Make this process repeatable, with this number of threads.

    XLA reads both from its environment when it first computes, once: NPROC is the size of its pool
    of threads, and XLA_FLAGS may have more of a person's own, which stay. What is compiled is kept
    in the cache folder, where the next run of an arm finds it. RuntimeError where the process has
    computed with another number.
    """
    global _chosen
    if _chosen is not None:
        if _chosen != threads:
            raise RuntimeError(
                f"XLA computes with {_chosen} threads in this process, and cannot change to "
                f"{threads}; experiments that need each other have the same number."
            )
        return
    _chosen = threads
    os.environ["NPROC"] = str(threads)
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags += [flag for flag in (*_ALWAYS, *(_ALONE if threads == 1 else ())) if flag not in flags]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING_S)


def fork_safe() -> bool:
    """Whether a process that has used JAX may be forked: its threads do not survive that."""
    return False


def compile_error() -> str | None:
    """Why an experiment that is to be compiled cannot be here: it would be another without need."""
    return "JAX compiles everything, so --compile has nothing to add."


def device() -> str:
    """What computes: cpu, or an accelerator by its name."""
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else f"{first.platform} ({first.device_kind})"


def shared(mesh: Mesh | None) -> Sharding | None:
    """On every device of the mesh the whole; None without one."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh | None, array: np.ndarray | None) -> Array | np.ndarray | None:
    """The items of a batch, as many on each device where they can be divided so."""
    if mesh is None or array is None:
        return array
    divided = PartitionSpec("items") if len(array) % mesh.size == 0 else PartitionSpec()
    return jax.device_put(array, NamedSharding(mesh, divided))


def all_devices() -> Mesh | None:
    """All devices in a row, over which items of a batch are divided; None where there is one."""
    devices = jax.devices()
    return Mesh(np.array(devices), ("items",)) if len(devices) > 1 else None


def threads() -> tuple[int, int]:
    """How many threads share one operation; as many operations may run at a time."""
    chosen = _chosen or int(os.environ.get("NPROC") or len(os.sched_getaffinity(0)))
    return chosen, chosen


def reset_peak_memory() -> int | None:
    """Memory held on the accelerator; None where there is none."""
    return _held("bytes_in_use")


def peak_bytes() -> int | None:
    """The most memory held on the accelerator since the process began: XLA counts from there."""
    return _held("peak_bytes_in_use")


def _held(what: str) -> int | None:
    counted = jax.devices()[0].memory_stats()
    return None if counted is None else counted[what]
