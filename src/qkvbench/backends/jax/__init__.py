"""JAX: pure functions of weights, one attention layer for all variants, and a learner."""

from qkvbench.backends.jax.attention import Attention, attention
from qkvbench.backends.jax.bidirectional import Encoder
from qkvbench.backends.jax.cache import Cache
from qkvbench.backends.jax.causal import Decoder
from qkvbench.backends.jax.learner import Learner, Step
from qkvbench.backends.jax.precision import types
from qkvbench.backends.jax.stacks import build
from qkvbench.backends.jax.weights import read, save, start

__all__ = [
    "Attention",
    "Cache",
    "Decoder",
    "Encoder",
    "Learner",
    "Step",
    "attention",
    "build",
    "read",
    "save",
    "start",
    "types",
]
