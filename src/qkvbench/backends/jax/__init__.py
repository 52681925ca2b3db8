"""JAX: pure functions of weights, one attention layer for all variants, and a learner.

Weights are one flat mapping under the names that all backends share; a network is a value that
computes, given its weights.
"""

from qkvbench.backends.jax.attention import Attention, attention
from qkvbench.backends.jax.bidirectional import Encoder
from qkvbench.backends.jax.cache import Cache
from qkvbench.backends.jax.causal import Decoder
from qkvbench.backends.jax.device import (
    cannot_compile,
    device,
    forks,
    level_bytes,
    peak_bytes,
    prepare,
    threads,
)
from qkvbench.backends.jax.kernels import product_s
from qkvbench.backends.jax.learner import Learner, Step
from qkvbench.backends.jax.precision import types
from qkvbench.backends.jax.stacks import build
from qkvbench.backends.jax.together import Group, cannot_join, grouped, joined
from qkvbench.backends.jax.weights import read, save, start
from qkvbench.backends.jax.workloads import (
    Decoding,
    Forward,
    Prefill,
    attention_kernels,
    workload,
)

__all__ = [
    "Attention",
    "Cache",
    "Decoder",
    "Decoding",
    "Encoder",
    "Forward",
    "Group",
    "Learner",
    "Prefill",
    "Step",
    "attention",
    "attention_kernels",
    "build",
    "cannot_compile",
    "cannot_join",
    "device",
    "forks",
    "grouped",
    "joined",
    "level_bytes",
    "peak_bytes",
    "prepare",
    "product_s",
    "read",
    "save",
    "start",
    "threads",
    "types",
    "workload",
]
