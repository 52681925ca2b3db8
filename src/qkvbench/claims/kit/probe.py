"""A check on this machine: the kernel that computes attention on its CPU."""

from functools import cache

from qkvbench import backends


@cache
def cpu_attention_kernel() -> str | None:
    """The kernel of a training step, as `qkvbench doctor` finds it by a profiler.

    None without PyTorch, and on a machine with an accelerator, which trains on that.
    """
    try:
        torch = backends.find("torch")
    except ImportError:
        return None
    if str(torch.device()) != "cpu":
        return None
    return torch.attention_kernels("fp32")["training"]
