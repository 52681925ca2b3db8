"""Which kernels compute attention, read from the compiled program.

XLA has no attention operation: a program is a graph of products, reductions and fusions, possibly
with calls of a library. So the text of the program that runs is searched.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from qkvbench.backends.common.bench import best_seconds
from qkvbench.backends.jax.training.precision import COMPUTE_DTYPE
from qkvbench.experiment import Precision

# Names of attention kernels of libraries in a compiled program.
_FUSED = re.compile(r'custom_call_target="([^"]*(?:fmha|attention|flash)[^"]*)"', re.IGNORECASE)
_CALLED = re.compile(r'custom_call_target="([^"]+)"')
_PRODUCT = re.compile(r"= (\w+)\[[\d,]*\][^ ]* dot\([^\n]*lhs_batch_dims=\{\d")


def attention_kernel(program: str) -> str:
    """The kernels that compute attention, from the HLO text of a compiled program."""
    fused = dict.fromkeys(_FUSED.findall(program))
    if fused:
        return ", ".join(fused)
    kinds = ", ".join(dict.fromkeys(_PRODUCT.findall(program)))
    if kinds and "exponential" in program:
        return f"XLA: matmul-softmax-matmul, no fused kernel (dot to {kinds}, exponential, dot)"
    called = ", ".join(dict.fromkeys(_CALLED.findall(program)))
    return f"XLA: no attention known by name{f'; it calls {called}' if called else ''}"


def matmul_seconds(precision: Precision, size: int) -> float:
    """Seconds of one product of two square matrices: the best of several."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(size, size)), COMPUTE_DTYPE[precision]) for _ in range(2))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    return best_seconds(lambda: product(a, b).block_until_ready())
