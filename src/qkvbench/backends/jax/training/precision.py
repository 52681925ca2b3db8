"""Casts for a precision; `common.precision` says what runs in which dtype.

There is no autocast: weights of matrix products are cast, and the dtypes of everything
else follow from the weights it is combined with.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from qkvbench.backends.common.precision import DTYPE_NAMES
from qkvbench.backends.jax.models.weights import Parameters, Weights
from qkvbench.experiment import Precision

COMPUTE_DTYPE: dict[Precision, DTypeLike] = {
    precision: jnp.dtype(name) for precision, name in DTYPE_NAMES.items()
}
# The output matrix of a decoder, and the weight that replaces it if they are tied.
OUTPUT, TABLE = "output.weight", "embedding.table"


def compute_weights(weights: Weights, parameters: Parameters, precision: Precision) -> Weights:
    """The weights of a pass: those of matrix products are cast to the compute dtype.

    A token table that is also the output matrix appears twice: it is looked up in fp32 and
    multiplied in the compute dtype.
    """
    dtype = COMPUTE_DTYPE[precision]
    if dtype == jnp.float32:
        return weights
    computed = {
        name: value.astype(dtype) if parameters[name].dtype == "compute" else value
        for name, value in weights.items()
    }
    if TABLE in weights:
        computed.setdefault(OUTPUT, weights[TABLE].astype(dtype))
    return computed


def upcast(array: Array) -> Array:
    """The array in fp32, or in fp64 if it is that already."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
