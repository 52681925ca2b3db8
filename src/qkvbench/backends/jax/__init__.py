"""JAX: pure functions of weights, one attention layer for all variants, and a learner.

Weights are one flat mapping under the names that all backends share; a network is a value that
computes, given its weights.
"""

from qkvbench.backends.common.precision import types
from qkvbench.backends.jax.attention.layer import Attention
from qkvbench.backends.jax.bench.profile import matmul_seconds
from qkvbench.backends.jax.bench.workloads import (
    Decoding,
    Forward,
    Prefill,
    attention_kernels,
    workload,
)
from qkvbench.backends.jax.cache.kv_cache import Cache
from qkvbench.backends.jax.models.build import build
from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.encoder import Encoder
from qkvbench.backends.jax.models.weights import read, save, start
from qkvbench.backends.jax.training.device import (
    compile_error,
    device,
    fork_safe,
    imported_late,
    peak_bytes,
    prepare,
    reset_peak_memory,
    threads,
)
from qkvbench.backends.jax.training.learner import Learner, Step

__all__ = [
    "Attention",
    "Cache",
    "Decoder",
    "Decoding",
    "Encoder",
    "Forward",
    "Learner",
    "Prefill",
    "Step",
    "attention_kernels",
    "build",
    "compile_error",
    "device",
    "fork_safe",
    "imported_late",
    "matmul_seconds",
    "peak_bytes",
    "prepare",
    "read",
    "reset_peak_memory",
    "save",
    "start",
    "threads",
    "types",
    "workload",
]
