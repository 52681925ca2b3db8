"""PyTorch: one attention layer for all variants, the stacks around it, and a learner."""

from qkvbench.backends.common.precision import types

# The door of the library: a layer from a variant and sizes, an nn.Module.
from qkvbench.backends.torch.attention.layer import attention as Attention  # noqa: N812
from qkvbench.backends.torch.bench.profile import matmul_seconds, threads
from qkvbench.backends.torch.bench.workloads import (
    Decoding,
    Forward,
    Prefill,
    attention_kernels,
    workload,
)
from qkvbench.backends.torch.cache.kv_cache import Cache
from qkvbench.backends.torch.cache.page_table import Growing, Reserved
from qkvbench.backends.torch.generation.beam_search import Beams
from qkvbench.backends.torch.generation.generate import Greedy, Sampling, generate
from qkvbench.backends.torch.models.build import build, decoder
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.encoder import Encoder
from qkvbench.backends.torch.models.weights import load, named_weights, read, save, start
from qkvbench.backends.torch.training.device import (
    compile_error,
    device,
    fork_safe,
    imported_late,
    peak_bytes,
    prepare,
    reset_peak_memory,
)
from qkvbench.backends.torch.training.launch import launch
from qkvbench.backends.torch.training.learner import Learner
from qkvbench.backends.torch.training.process_group import multi_device_error, rank_and_world_size

__all__ = [
    "Attention",
    "Beams",
    "Cache",
    "Decoder",
    "Decoding",
    "Encoder",
    "Forward",
    "Greedy",
    "Growing",
    "Learner",
    "Prefill",
    "Reserved",
    "Sampling",
    "attention_kernels",
    "build",
    "compile_error",
    "decoder",
    "device",
    "fork_safe",
    "generate",
    "imported_late",
    "launch",
    "load",
    "matmul_seconds",
    "multi_device_error",
    "named_weights",
    "peak_bytes",
    "prepare",
    "rank_and_world_size",
    "read",
    "reset_peak_memory",
    "save",
    "start",
    "threads",
    "types",
    "workload",
]
