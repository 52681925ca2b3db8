"""What runs in which type: a precision is one value, and this the only place that reads it.

There is no autocast: what enters products is cast by its name, and everything else follows from
the types of the weights that it meets.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from qkvbench.backends.jax.models.weights import Parameters, Weights
from qkvbench.experiment import PRECISIONS, Precision

# The type of matrix products, and of what works on their results before the next sum.
PRODUCTS: dict[Precision, DTypeLike] = {
    "fp32": jnp.float32,
    "bf16": jnp.bfloat16,
    "fp16": jnp.float16,
}

IN_THE_TYPE_OF_PRODUCTS = (
    "projections, feed-forward and logits, forward and backward",
    "Q, K and V; attention's inputs and result",
    "learned rotations, applied",
    "turning by position",
    "GELU",
)
IN_FP32 = (
    "weights, and the sum of their gradients over micro-batches",
    "optimizer state and update",
    "embedding and the stream between parts",
    "norms",
    "softmax of attention, inside its kernel",
    "learned rotations, made",
    "softmax over classes and loss",
)
# The output matrix of a decoder, and what stands for it where they are tied.
OUTPUT, TABLE = "output.weight", "embedding.table"


def types() -> dict[str, dict[Precision, str]]:
    """What runs in which type in training, by part and precision: a table for a person."""
    rows: dict[str, dict[Precision, str]] = {
        part: {precision: jnp.dtype(kind).name for precision, kind in PRODUCTS.items()}
        for part in IN_THE_TYPE_OF_PRODUCTS
    }
    for part in IN_FP32:
        rows[part] = dict.fromkeys(PRECISIONS, "float32")
    rows["loss scaling"] = {
        precision: "dynamic" if needs_scaling(precision) else "none" for precision in PRECISIONS
    }
    return rows


def needs_scaling(precision: Precision) -> bool:
    """Whether the smallest number of the type is so much larger than fp32's that it matters."""
    return bool(jnp.finfo(PRODUCTS[precision]).tiny > jnp.finfo(jnp.float32).tiny)


def as_computed(weights: Weights, parameters: Parameters, precision: Precision) -> Weights:
    """The weights as a training pass reads them: those of products in the type of products.

    A table of tokens that is the output matrix, too, is looked up in fp32 and multiplied in the
    type of products, so there it is in the result twice.
    """
    kind = PRODUCTS[precision]
    if kind == jnp.float32:
        return weights
    computed = {
        name: value.astype(kind) if parameters[name].dtype == "compute" else value
        for name, value in weights.items()
    }
    if TABLE in weights:
        computed.setdefault(OUTPUT, weights[TABLE].astype(kind))
    return computed


def exact(array: Array) -> Array:
    """The numbers in fp32, or in fp64 where they are."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
