"""What runs in which type: a precision is one value, and this the only place that reads it."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qkvbench.experiment import PRECISIONS, Precision

# The type of matrix products, and of what works on their results before the next sum.
PRODUCTS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Parts of a training step by whether they run in the type of the products or always in fp32.
# Autocast decides so by operation; a law watches every operation of a step and holds it to this.
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


def types() -> dict[str, dict[Precision, str]]:
    """What runs in which type in training, by part and precision: a table for a person."""
    rows: dict[str, dict[Precision, str]] = {
        part: {precision: _name(kind) for precision, kind in PRODUCTS.items()}
        for part in IN_THE_TYPE_OF_PRODUCTS
    }
    for part in IN_FP32:
        rows[part] = dict.fromkeys(PRECISIONS, _name(torch.float32))
    scaled: dict[Precision, str] = {
        precision: "dynamic" if _needs_scaling(precision) else "none" for precision in PRECISIONS
    }
    rows["loss scaling"] = scaled
    return rows


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs at `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRODUCTS[precision])


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """What keeps small gradients from vanishing where the type needs it; elsewhere it does nothing.

    It begins with a scale of 2^16, halves it at an overflow, and doubles it after 2000 steps
    without one (arXiv:1710.03740, section 3.2).
    """
    return torch.amp.GradScaler(device.type, enabled=_needs_scaling(precision))


def _needs_scaling(precision: Precision) -> bool:
    """Whether the smallest number of the type is so much larger than fp32's that it matters."""
    smallest = torch.finfo(PRODUCTS[precision]).smallest_normal
    return smallest > torch.finfo(torch.float32).smallest_normal


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
