"""What really computes attention here, read from the compiled program: its products and softmax.

XLA has no operation of the name: a program is a graph of products, reductions and fusions, and a
library's call where there is one. So the program that runs is looked at, and nothing is assumed.
"""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from qkvbench.backends.jax.training.precision import PRODUCTS
from qkvbench.experiment import Precision

# What a library's own attention is called in a compiled program.
_FUSED = re.compile(r'custom_call_target="([^"]*(?:fmha|attention|flash)[^"]*)"', re.IGNORECASE)
_CALLED = re.compile(r'custom_call_target="([^"]+)"')
_PRODUCT = re.compile(r"= (\w+)\[[\d,]*\][^ ]* dot\([^\n]*lhs_batch_dims=\{\d")


def attention_kernel(program: str) -> str:
    """What does attention in a compiled program, from its text in XLA's language."""
    fused = dict.fromkeys(_FUSED.findall(program))
    if fused:
        return ", ".join(fused)
    kinds = ", ".join(dict.fromkeys(_PRODUCT.findall(program)))
    if kinds and "exponential" in program:
        return f"XLA: matmul-softmax-matmul, no fused kernel (dot to {kinds}, exponential, dot)"
    called = ", ".join(dict.fromkeys(_CALLED.findall(program)))
    return f"XLA: no attention known by name{f'; it calls {called}' if called else ''}"


def matmul_seconds(precision: Precision, size: int) -> float:
    """Seconds that one product of two square matrices takes: the best of five in half a second."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(size, size)), PRODUCTS[precision]) for _ in range(2))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    times: list[float] = []
    while len(times) < 6 and sum(times) < 0.5:
        began = time.perf_counter()
        product(a, b).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)
