"""The precision policy: which parts of a training step run in which dtype."""

from qkvbench.experiment import PRECISIONS, Precision

DTYPE_NAMES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# The compute dtype is that of matrix products, and of what works on their results before the next
# sum. In torch autocast decides this per operation; a law compares every operation of a step with
# this table.
IN_COMPUTE_DTYPE = (
    "projections, feed-forward and logits, forward and backward",
    "Q, K and V; attention's inputs and result",
    "learned rotations, applied",
    "RoPE",
    "GELU",
)
IN_FP32 = (
    "weights, and the sum of their gradients over micro-batches",
    "optimizer state and update",
    "embedding and residual stream",
    "norms",
    "softmax of attention, inside its kernel",
    "learned rotations, computed",
    "softmax over classes and loss",
)


def types() -> dict[str, dict[Precision, str]]:
    """The dtype of each part of training by precision: a table for people."""
    rows: dict[str, dict[Precision, str]] = {part: dict(DTYPE_NAMES) for part in IN_COMPUTE_DTYPE}
    for part in IN_FP32:
        rows[part] = dict.fromkeys(PRECISIONS, DTYPE_NAMES["fp32"])
    rows["loss scaling"] = {
        precision: "dynamic" if needs_loss_scaling(precision) else "none"
        for precision in PRECISIONS
    }
    return rows


def needs_loss_scaling(precision: Precision) -> bool:
    """Whether small gradients underflow: fp16 has normal numbers from 2^-14, others from 2^-126."""
    return precision == "fp16"
