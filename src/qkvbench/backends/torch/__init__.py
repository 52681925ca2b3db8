"""PyTorch: one attention layer for all variants, the stacks around it, and a learner."""

from qkvbench.backends.torch.attention import Attention
from qkvbench.backends.torch.bidirectional import Encoder
from qkvbench.backends.torch.cache import Cache
from qkvbench.backends.torch.causal import Decoder
from qkvbench.backends.torch.generate import Greedy, Sampling, generate
from qkvbench.backends.torch.kernels import product_s, threads
from qkvbench.backends.torch.launching import launch
from qkvbench.backends.torch.learner import (
    Learner,
    cannot_compile,
    cannot_join,
    device,
    forks,
    grouped,
    joined,
    level_bytes,
    peak_bytes,
    prepare,
)
from qkvbench.backends.torch.precision import types
from qkvbench.backends.torch.ranks import cannot_spread, started
from qkvbench.backends.torch.search import Beams
from qkvbench.backends.torch.stacks import build, decoder
from qkvbench.backends.torch.table import Growing, Reserved
from qkvbench.backends.torch.weights import load, named_weights, read, save, start
from qkvbench.backends.torch.workloads import (
    Decoding,
    Forward,
    Prefill,
    attention_kernels,
    workload,
)

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
    "cannot_compile",
    "cannot_join",
    "cannot_spread",
    "decoder",
    "device",
    "forks",
    "generate",
    "grouped",
    "joined",
    "launch",
    "level_bytes",
    "load",
    "named_weights",
    "peak_bytes",
    "prepare",
    "product_s",
    "read",
    "save",
    "start",
    "started",
    "threads",
    "types",
    "workload",
]
