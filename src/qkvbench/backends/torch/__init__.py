"""PyTorch: one attention layer for all variants, the stacks around it, and a learner."""

from qkvbench.backends.torch.attention import Attention
from qkvbench.backends.torch.bidirectional import Encoder
from qkvbench.backends.torch.cache import Cache
from qkvbench.backends.torch.causal import Decoder
from qkvbench.backends.torch.decoding import Decoding
from qkvbench.backends.torch.learner import (
    Learner,
    cannot_compile,
    device,
    level_bytes,
    peak_bytes,
    prepare,
)
from qkvbench.backends.torch.precision import types
from qkvbench.backends.torch.stacks import build, decoder
from qkvbench.backends.torch.weights import load, named_weights, read, save, start

__all__ = [
    "Attention",
    "Cache",
    "Decoder",
    "Decoding",
    "Encoder",
    "Learner",
    "build",
    "cannot_compile",
    "decoder",
    "device",
    "level_bytes",
    "load",
    "named_weights",
    "peak_bytes",
    "prepare",
    "read",
    "save",
    "start",
    "types",
]
