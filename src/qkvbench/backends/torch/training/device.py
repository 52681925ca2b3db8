"""The device, its memory, and a repeatable process."""

import os

import torch

from qkvbench.backends.torch.training import compilation


def prepare(threads: int) -> None:
    """Make this process repeatable: a fixed number of threads, deterministic kernels only."""
    torch.set_num_threads(threads)
    # cuBLAS is deterministic only with a fixed workspace size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # `use_deterministic_algorithms` does the same, but imports a compiler: a second per process.
    torch.set_deterministic_debug_mode("error")
    # Filling new memory with NaN finds reads before writes; it takes 4% of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_generator(device: torch.device) -> torch.Generator:
    """The generator from which torch draws dropout on `device`."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator


def fork_safe() -> bool:
    """Whether a process that has used torch may be forked: CUDA does not survive it."""
    return device().type == "cpu"


def imported_late() -> tuple[str, ...]:
    """The compiler, which every optimizer of torch imports when it is made: a second or more."""
    return ("torch._dynamo",)


def compile_error() -> str | None:
    """Why `compiled` experiments cannot run on this machine; None if they can."""
    return compilation.compile_error(device())


def reset_peak_memory() -> int | None:
    """Start counting the peak; the memory allocated on the accelerator, None if there is none."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes() -> int | None:
    """The peak memory of the accelerator since `reset_peak_memory`; None if there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
