"""Devices, their memory, and the threads of XLA, which a process sets once."""

import os

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from qkvbench.data.cache import cache_folder

# Programs that take longer to compile are kept in the compilation cache.
MIN_CACHED_COMPILE_S = 0.2

# The number of threads of this process; None before `prepare`.
_threads: int | None = None
# Deterministic operations; and with one thread, none of Eigen's own.
_DETERMINISTIC = ("--xla_gpu_deterministic_ops=true",)
_SINGLE_THREAD = ("--xla_cpu_multi_thread_eigen=false",)


def prepare(threads: int) -> None:
    """Make this process repeatable, with this number of threads.

    XLA reads its environment once, when it first computes: NPROC is the size of its thread pool;
    flags that the user has set in XLA_FLAGS are kept. The compilation cache is in the cache folder,
    where the next run of an arm finds it. RuntimeError if the process already uses another number
    of threads.
    """
    global _threads
    if _threads is not None:
        if _threads != threads:
            raise RuntimeError(
                f"XLA computes with {_threads} threads in this process, and cannot change to "
                f"{threads}; experiments that need each other have the same number."
            )
        return
    _threads = threads
    os.environ["NPROC"] = str(threads)
    flags = os.environ.get("XLA_FLAGS", "").split()
    needed = (*_DETERMINISTIC, *(_SINGLE_THREAD if threads == 1 else ()))
    flags += [flag for flag in needed if flag not in flags]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_CACHED_COMPILE_S)


def fork_safe() -> bool:
    """False: the threads of XLA do not survive a fork."""
    return False


def imported_late() -> tuple[str, ...]:
    """None: its processes are not forked."""
    return ()


def compile_error() -> str | None:
    """Why `compiled` experiments are refused: they would differ from others in identity only."""
    return "JAX compiles everything, so --compile has nothing to add."


def device() -> str:
    """The device: cpu, or the name of the accelerator."""
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else f"{first.platform} ({first.device_kind})"


def replicated(mesh: Mesh | None) -> Sharding | None:
    """The sharding of arrays that every device of the mesh has; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh | None, array: np.ndarray | None) -> Array | np.ndarray | None:
    """The items of a batch, divided among the devices if their number allows it."""
    if mesh is None or array is None:
        return array
    spec = PartitionSpec("items") if len(array) % mesh.size == 0 else PartitionSpec()
    return jax.device_put(array, NamedSharding(mesh, spec))


def all_devices() -> Mesh | None:
    """A mesh of all devices, for data parallelism; None if there is only one."""
    devices = jax.devices()
    return Mesh(np.array(devices), ("items",)) if len(devices) > 1 else None


def threads() -> tuple[int, int]:
    """Threads within one operation, and operations that may run at a time: one shared pool."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    size = _threads or int(os.environ.get("NPROC") or cores)
    return size, size


def reset_peak_memory() -> int | None:
    """The memory allocated on the accelerator; None if there is none. XLA cannot reset its peak."""
    return _memory_stat("bytes_in_use")


def peak_bytes() -> int | None:
    """The peak memory of the accelerator since the process began; None if there is none."""
    return _memory_stat("peak_bytes_in_use")


def _memory_stat(name: str) -> int | None:
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats[name]
